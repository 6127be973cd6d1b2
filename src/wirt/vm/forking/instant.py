"""One instant for several machines that are frozen together.

None of them goes on before all stand still: so nothing that one has received was sent by
another after that one's state was saved. What can be done before is done before the first
stands still, and what can wait is done after the last goes on::

    prepare ─┤ready├─ stop ─ save ─ load ─┤all stand├─ decide ─ cont ─┤all run├─ finish
                      └───────────────── the pause ────────────────┘
"""

from __future__ import annotations

import threading
import time

from wirt.errors import WrongState

_PREPARE_SECONDS = 600.0
_SAVE_SECONDS = 600.0
_RUN_SECONDS = 60.0


class Instant:
    """The instant of ``machines`` threads, each of which freezes one machine."""

    def __init__(self, machines: int = 1) -> None:
        self.shared = machines > 1
        self.cause: BaseException | None = None
        """Why it will not come."""
        self._ready = threading.Barrier(machines)
        self._standing = threading.Barrier(machines)
        self._running = threading.Barrier(machines)
        self._stopped: list[float] = []
        self._resumed: list[float] = []

    @property
    def skew(self) -> float:
        """Seconds between the first and the last that stood still: the width of the instant."""
        return max(self._stopped) - min(self._stopped)

    @property
    def pause(self) -> float:
        """Seconds from when the first stood still until the last ran again."""
        return max(self._resumed) - min(self._stopped)

    def ready(self) -> None:
        """Return when all machines can be stopped. Raises WrongState."""
        self._wait(self._ready, _PREPARE_SECONDS)

    def stands(self) -> None:
        """Note that a machine has been stopped."""
        self._stopped.append(time.monotonic())

    def all_stand(self) -> None:
        """Return when all machines stand still. Raises WrongState: then none may stay frozen."""
        self._wait(self._standing, _SAVE_SECONDS)

    def runs(self) -> None:
        """Note that a machine runs again, and return when all do or one never will."""
        self._resumed.append(time.monotonic())
        try:
            self._running.wait(_RUN_SECONDS)
        except threading.BrokenBarrierError:
            return

    def fail(self, cause: BaseException) -> None:
        """Let nobody wait for a machine that cannot be frozen."""
        self.cause = self.cause or cause
        for barrier in (self._ready, self._standing, self._running):
            barrier.abort()

    def _wait(self, barrier: threading.Barrier, seconds: float) -> None:
        try:
            barrier.wait(seconds)
        except threading.BrokenBarrierError as error:
            raise WrongState("the machines could not be frozen together") from error
