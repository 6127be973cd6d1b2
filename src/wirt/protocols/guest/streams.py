"""Where a command's input comes from and its output goes to, without ever blocking.

Descriptors are used as they are: O_NONBLOCK would change them for other processes too.
So a pipe or terminal gets at most PIPE_BUF bytes after poll called it writable, which
POSIX promises not to block.
"""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Callable

from wirt.errors import HostError
from wirt.protocols.guest.codec import MAX_PAYLOAD

Source = int | bytes | None
Sink = int | Callable[[bytes], object] | None


class Input:
    """Bytes for the command: from a descriptor, from memory, or none."""

    def __init__(self, source: Source) -> None:
        self.fd = source if isinstance(source, int) else -1
        self._memory = memoryview(source) if isinstance(source, bytes) else memoryview(b"")
        self.ended = False

    @property
    def is_ready(self) -> bool:
        """Whether ``read`` will not wait for another process."""
        return self.fd < 0

    def read(self, limit: int) -> bytes:
        """Return up to ``limit`` bytes; none if there are none yet, or ever (``ended``)."""
        count = min(limit, MAX_PAYLOAD)
        if self.fd >= 0:
            return self._read_fd(count)
        data = bytes(self._memory[:count])
        self._memory = self._memory[count:]
        self.ended = not self._memory
        return data

    def _read_fd(self, count: int) -> bytes:
        try:
            data = os.read(self.fd, count)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""  # a terminal that hung up, a closed descriptor: no more input
        self.ended = not data
        return data


class Output:
    """Bytes from the command: to a descriptor, to a function, or dropped."""

    def __init__(self, sink: Sink) -> None:
        self.fd = sink if isinstance(sink, int) else -1
        self._call = sink if callable(sink) else None
        self._pending = memoryview(b"")
        self._step = _safe_write(self.fd) if self.fd >= 0 else 0

    @property
    def is_waiting(self) -> bool:
        """Whether bytes wait for the descriptor to become writable."""
        return len(self._pending) > 0

    def write(self, data: bytes) -> None:
        """Hand ``data`` over, or keep it until ``flush`` is called on a writable descriptor."""
        if self._call is not None:
            self._call(data)
        elif self.fd >= 0:
            self._pending = memoryview(bytes(self._pending) + data)

    def flush(self) -> None:
        """Write what the descriptor takes at once. Raises HostError."""
        try:
            while self._pending and _is_writable(self.fd):
                written = os.write(self.fd, self._pending[: self._step])
                self._pending = self._pending[written:]
        except BlockingIOError:
            pass
        except OSError as error:
            raise HostError(f"cannot write the command's output: {error.strerror}") from error


def _safe_write(fd: int) -> int:
    return 1 << 20 if stat.S_ISREG(os.fstat(fd).st_mode) else select.PIPE_BUF


def _is_writable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))
