"""Points at which a test lets something be killed: ``WIRT_FAILPOINT=NAME[:N][=VICTIM]``.

Without N the first time that the point is reached. The victim is this process, the process
with that number, or every process that has a file open which matches that path. What must
survive any kill is tested at every step that it has, instead of at random moments.
"""

from __future__ import annotations

import os
import signal

_WANTED, _, _VICTIM = os.environ.get("WIRT_FAILPOINT", "").partition("=")
_NAME, _, _COUNT = _WANTED.partition(":")
_left = [int(_COUNT) if _COUNT.isdigit() else 1]


def failpoint(name: str) -> None:
    """Kill here, if a test asks for it."""
    if name != _NAME:
        return
    _left[0] -= 1
    if _left[0]:
        return
    if not _VICTIM:
        os.kill(os.getpid(), signal.SIGKILL)
    elif _VICTIM.isdigit():
        os.kill(int(_VICTIM), signal.SIGKILL)
    else:
        from glob import glob

        from wirt.host.holders import kill_holders

        for path in glob(_VICTIM, include_hidden=True):
            kill_holders(path)
