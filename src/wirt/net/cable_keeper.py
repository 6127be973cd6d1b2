"""The cable keeper: one small process that holds a cable together and mends it.

A cable is up to three programs in a row, joined by pipes: a plug, a filter, a plug (or ssh to
one). When one ends, because its switch did or a connection broke, the others are ended and
all are started again, after a pause that grows. Killed, the keeper takes its programs with it
(they ask the kernel for that), and the next wirt command starts another one.

Run as ``python -I -S cable_keeper.py FD`` with its settings as JSON on descriptor FD, and
only the standard library.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import sys
import time
from typing import Any

_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_STEADY_SECONDS = 10.0
"""A cable that held this long was well: the next pause is the shortest again."""
_WORDS = 2000
_PARENT = "@PARENT@"  # of wirt.host.process
# wirefilter finds its second side by these names, as dpipe gives them.
_SECOND_SIDE = {"ALTERNATE_STDIN": "3", "ALTERNATE_STDOUT": "4"}

Pipe = tuple[int, int]


class Row:
    """The programs of one attempt."""

    def __init__(self, argvs: list[list[str]]) -> None:
        self._words_fd, words = os.pipe()
        os.set_blocking(self._words_fd, False)
        to_right = [os.pipe() for _ in argvs[1:]]
        to_left = [os.pipe() for _ in argvs[1:]]
        self.pids: set[int] = set()
        try:
            for place, argv in enumerate(argvs):
                self.pids.add(_spawn(argv, _ends(place, to_right, to_left), words))
        finally:
            os.close(words)
            for pipe in (*to_right, *to_left):
                os.close(pipe[0])
                os.close(pipe[1])

    def wait(self) -> str:
        """Wait until one program ends; end the others. Returns the last words of all."""
        pid, _ = os.wait()
        self.pids.discard(pid)
        self.end()
        said = b""
        with contextlib.suppress(OSError):
            while part := os.read(self._words_fd, 4096):
                said = (said + part)[-_WORDS:]
        os.close(self._words_fd)
        lines = [line.strip() for line in said.decode(errors="replace").splitlines()]
        return "; ".join([line for line in lines if line][-3:])

    def end(self) -> None:
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in self.pids:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        self.pids = set()


def _ends(place: int, to_right: list[Pipe], to_left: list[Pipe]) -> dict[int, int]:
    """Return number in the program → descriptor, for the program at ``place`` of the row."""
    left = {0: to_right[place - 1][0], 1: to_left[place - 1][1]} if place > 0 else {}
    right = {0: to_left[place][0], 1: to_right[place][1]} if place < len(to_right) else {}
    if left and right:
        return {**left, 3: right[0], 4: right[1]}
    return left or right


def _spawn(argv: list[str], ends: dict[int, int], words: int) -> int:
    # Out of the way first: a descriptor that is yet to be moved must not be overwritten.
    high = {number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 32) for number, fd in ends.items()}
    actions: list[tuple[int, ...]] = [
        (os.POSIX_SPAWN_DUP2, fd, number) for number, fd in high.items()
    ]
    actions.append((os.POSIX_SPAWN_DUP2, words, 2))
    environment = {**os.environ, **(_SECOND_SIDE if 3 in ends else {})}
    line = [str(os.getpid()) if word == _PARENT else word for word in argv]
    try:
        return os.posix_spawn(line[0], line, environment, file_actions=actions)
    finally:
        for fd in high.values():
            os.close(fd)


def _tell(path: str, state: str, why: str) -> None:
    """Write what ``wirt cable ls`` shows; a full disk loses that, never the cable."""
    with contextlib.suppress(OSError):
        temporary = f"{path}.new"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump({"state": state, "why": why, "since": time.time()}, file)
        os.rename(temporary, path)


def _pause(seconds: float) -> None:
    select.select([], [], [], seconds)


def keep(settings: dict[str, Any]) -> None:
    """Hold the cable until SIGTERM, which ends the process."""
    failures = 0
    while True:
        began = time.monotonic()
        row = Row(settings["programs"])

        def leave(_number: int, _frame: object, row: Row = row) -> None:
            row.end()
            os._exit(0)

        signal.signal(signal.SIGTERM, leave)
        _tell(settings["status"], "up", "")
        why = row.wait()
        if time.monotonic() - began > _STEADY_SECONDS:
            failures = 0
        _tell(settings["status"], "waiting", why)
        _pause(_PAUSES[min(failures, len(_PAUSES) - 1)])
        failures += 1


def main() -> int:
    with open(int(sys.argv[1]), "rb") as file:
        settings = json.loads(file.read())
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    keep(settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
