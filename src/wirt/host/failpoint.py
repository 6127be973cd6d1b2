"""Points at which a test lets this process be killed: ``WIRT_FAILPOINT=NAME`` or ``NAME:N``.

With N, the N-th time that the point is reached. What must survive any kill is tested at
every step that it has, instead of at random moments.
"""

from __future__ import annotations

import os
import signal

_NAME, _, _COUNT = os.environ.get("WIRT_FAILPOINT", "").partition(":")
_left = [int(_COUNT) if _COUNT.isdigit() else 1]


def failpoint(name: str) -> None:
    """End this process here, if a test asks for it."""
    if name != _NAME:
        return
    _left[0] -= 1
    if _left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
