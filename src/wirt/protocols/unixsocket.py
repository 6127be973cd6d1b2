"""Stream sockets in the file system, with total deadlines and errors of our own tree.

QEMU serves one client for each socket; a second one waits in the backlog, a third is
turned away with EAGAIN until there is room again.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Sequence
from typing import Self

from wirt.errors import HostError, PeerClosed, Timeout
from wirt.protocols.deadline import Deadline

MAX_PATH = 107  # sizeof(sockaddr_un.sun_path) less the final zero
RECEIVE_SIZE = 64 << 10
_BACKLOG_RETRY = 0.01


class UnixConnection:
    """A connected stream socket; every wait ends at the deadline it is given.

    ``name`` (path of the socket) appears in messages. Not for use by two threads at once.
    """

    def __init__(self, sock: socket.socket, name: str) -> None:
        self._socket = sock
        self.name = name

    @classmethod
    def connect(cls, path: str | os.PathLike[str], deadline: Deadline) -> Self:
        """Connect to ``path``, which may be longer than a socket address can hold.

        Raises PeerClosed (nothing listens), HostError (no permission …) or Timeout.
        """
        name = os.fspath(path)
        return cls(connected(name, deadline), name)

    def fileno(self) -> int:
        return self._socket.fileno()

    def peer_pid(self) -> int:
        """Process id of the peer at the moment it began to listen (SO_PEERCRED)."""
        ucred = self._socket.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
        )
        pid: int = struct.unpack("3i", ucred)[0]
        return pid

    def send(self, data: bytes, deadline: Deadline, *, fds: Sequence[int] = ()) -> None:
        """Send all of ``data``; ``fds`` travel with its first byte (SCM_RIGHTS)."""
        try:
            if fds:
                self._socket.settimeout(self._left(deadline))
                data = data[socket.send_fds(self._socket, [data], list(fds)) :]
            if data:
                self._socket.settimeout(self._left(deadline))
                self._socket.sendall(data)
        except (TimeoutError, BlockingIOError):
            raise Timeout(f"{self.name}: the peer does not read what it is sent") from None
        except OSError as error:
            raise self._closed(error) from None

    def send_some(self, data: bytes | bytearray) -> int:
        """Send what the socket takes at once; return how many bytes that was."""
        try:
            return self._socket.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._closed(error) from None

    def receive(self, deadline: Deadline) -> bytes:
        """Return up to 64 KiB. Raises PeerClosed at the end of the stream, and Timeout."""
        try:
            self._socket.settimeout(self._left(deadline))
            data = self._socket.recv(RECEIVE_SIZE)
        except (TimeoutError, BlockingIOError):
            raise Timeout(f"{self.name}: no answer") from None
        except OSError as error:
            raise self._closed(error) from None
        if not data:
            raise PeerClosed(f"{self.name}: the peer closed the connection")
        return data

    def close(self) -> None:
        self._socket.close()

    def _left(self, deadline: Deadline) -> float:
        left = deadline.left()
        if not left:
            raise Timeout(f"{self.name}: no answer in time")
        return left

    def _closed(self, error: OSError) -> PeerClosed:
        return PeerClosed(f"{self.name}: the connection broke: {error.strerror or error}")


def connected(path: str, deadline: Deadline) -> socket.socket:
    """Return a socket that is connected to ``path``, as ``UnixConnection.connect``."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        _connect(sock, path, deadline)
    except BaseException:
        sock.close()
        raise
    return sock


def _connect(sock: socket.socket, path: str, deadline: Deadline) -> None:
    if len(os.fsencode(path)) <= MAX_PATH:
        _connect_address(sock, path, path, deadline)
        return
    folder, base = os.path.split(path)
    try:
        folder_fd = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise HostError(f"cannot connect to {path}: {error}") from None
    try:
        # The kernel resolves the magic link, so that only the last name counts.
        _connect_address(sock, f"/proc/self/fd/{folder_fd}/{base}", path, deadline)
    finally:
        os.close(folder_fd)


def _connect_address(sock: socket.socket, address: str, path: str, deadline: Deadline) -> None:
    while True:
        left = deadline.left()
        if not left:
            raise Timeout(
                f"{path}: too many clients wait for this socket",
                hint="another wirt command may hold it: see who with `ss -xp`",
            )
        try:
            sock.settimeout(left)
            sock.connect(address)
        except (BlockingIOError, TimeoutError):
            time.sleep(min(_BACKLOG_RETRY, left))
        except (FileNotFoundError, ConnectionRefusedError):
            raise PeerClosed(
                f"nothing listens on {path}", hint="the process that served it has ended"
            ) from None
        except (OSError, ValueError) as error:
            raise HostError(f"cannot connect to {path}: {error}") from None
        else:
            return
