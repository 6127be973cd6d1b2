"""A name for a process that a pid reuse cannot steal."""

from __future__ import annotations

import os
import select
import signal
import time

import msgspec

from wirt.errors import HostError

_FIELDS = 20
"""As many as we look at, from the third on: up to starttime."""


class ProcessId(msgspec.Struct, frozen=True):
    """A process named by pid and start time (clock ticks since boot): never a stranger's.

    Across boots both can repeat: who stores one stores the boot's id too.
    """

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """Return the identity of a process that exists, or None."""
        ticks = _start_ticks(pid)
        return None if ticks is None else cls(pid, ticks)

    def alive(self) -> bool:
        """True while this very process runs (a zombie does not)."""
        return _start_ticks(self.pid) == self.start_ticks

    def _open(self) -> int | None:
        """Return a pidfd, also of a zombie: its other threads may still hold files and locks."""
        try:
            fd = os.pidfd_open(self.pid)
        except OSError:
            return None
        if _stat(self.pid)[1] == self.start_ticks:
            return fd
        os.close(fd)
        return None

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal to this very process; False if it is gone. Raises HostError."""
        fd = self._open() if self.alive() else None
        if fd is None:
            return False
        try:
            signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            return False
        except PermissionError as error:
            raise HostError(f"you may not signal process {self.pid}") from error
        finally:
            os.close(fd)
        return True

    def kill(self) -> bool:
        """Kill this very process."""
        return self.signal(signal.SIGKILL)

    def cpu_seconds(self) -> float:
        """Return the processor time that all its threads have used; 0.0 if it is gone."""
        fields = _fields(self.pid)
        if len(fields) < _FIELDS or int(fields[19]) != self.start_ticks:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime

    def wait(self, timeout: float) -> bool:
        """Wait for its end, also if it is no child of ours; False after ``timeout`` seconds."""
        fd = self._open()
        if fd is None:
            return True
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        deadline = time.monotonic() + timeout
        try:
            while (left := deadline - time.monotonic()) > 0:
                if poller.poll(left * 1000):
                    return True
            return False
        finally:
            os.close(fd)


def _start_ticks(pid: int) -> int | None:
    state, ticks = _stat(pid)
    return None if state in {b"Z", b"X"} else ticks


def _stat(pid: int) -> tuple[bytes, int | None]:
    """Return the state and the start time of a process; no time if there is none."""
    fields = _fields(pid)
    return (fields[0], int(fields[19])) if len(fields) >= _FIELDS else (b"", None)


def _fields(pid: int) -> list[bytes]:
    """Return the fields of proc(5)'s stat from the third on; none of a process that is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()  # the name may hold spaces and ")"
    except (FileNotFoundError, ProcessLookupError):
        return []
