"""Programs that a build runs: their output is kept, their end is certain."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from wirt.errors import HostError, NoSpace
from wirt.host.process import spawn

KEPT_LINES = 400
_SHOWN_LINES = 12


def run(
    argv: Sequence[str],
    *,
    what: str,
    environment: Mapping[str, str] | None = None,
    line: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Run ``argv`` to its end and return its last lines; ``line`` sees each as it comes.

    Standard output and error are read together. However the call ends (an exception of
    ``line``, Ctrl-C), the program's process group is gone afterwards. Raises HostError with
    the last lines when the program fails, NoSpace when they say so.
    """
    kept: deque[str] = deque(maxlen=KEPT_LINES)
    process = spawn(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, new_session=True
    )
    with process:
        try:
            for text in _lines(process):
                kept.append(text)
                line(text)
            process.wait()
        finally:
            _end(process.pid)
    if process.returncode != 0:
        raise failure(what, process.returncode, kept)
    return list(kept)


def _lines(process: subprocess.Popen[bytes]) -> Iterator[str]:
    if process.stdout is None:
        return
    while raw := process.stdout.readline(1 << 16):
        yield raw.decode(errors="replace").rstrip()


def _end(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def failure(what: str, status: int, lines: Sequence[str]) -> HostError:
    """Return the error for a program that ended with ``status``, told by its last lines."""
    tail = "\n".join(f"  {text}" for text in list(lines)[-_SHOWN_LINES:])
    if any("No space left on device" in text or "write error" in text for text in lines):
        return NoSpace(f"{what}: no space left\n{tail}")
    ended = f"signal {-status}" if status < 0 else f"exit status {status}"
    return HostError(f"{what} failed ({ended})\n{tail}")
