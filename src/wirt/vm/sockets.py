"""Sockets of a machine that listen before its QEMU starts.

QEMU inherits them, so nobody polls for a path to appear: who connects early waits in line,
and is turned away at once if QEMU ends.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable

import msgspec

from wirt.errors import HostError
from wirt.protocols.unixsocket import MAX_PATH
from wirt.spec.console import Console, UnixSocket
from wirt.spec.machine import Machine

_BACKLOG = 8


class Sockets(msgspec.Struct, frozen=True):
    """Descriptors by the names that ``layout`` gives the sockets."""

    fds: dict[str, int]

    def close(self) -> None:
        """Let go: QEMU has its own copies, and its end must be seen."""
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()


def names(machine: Machine) -> list[str]:
    """Return the sockets that wirt names for this machine."""
    serials = [
        f"serial{index}"
        for index, serial in enumerate(machine.serials)
        if isinstance(serial.backend, Console)
    ]
    channels = [
        channel.name
        for channel in machine.channels
        if isinstance(channel.backend, Console) or channel.backend == UnixSocket()
    ]
    return ["qmp", *serials, *channels]


def listen_all(wanted: Iterable[str], path_of: Callable[[str], str], uid: int) -> Sockets:
    """Bind the sockets for a QEMU that runs as ``uid`` (0: as we do). Raises HostError."""
    sockets = Sockets({})
    try:
        for name in wanted:
            sockets.fds[name] = listen(path_of(name), uid)
    except BaseException:
        sockets.close()
        raise
    return sockets


def listen(path: str, uid: int) -> int:
    """Return a descriptor that listens on ``path``, which must be free."""
    if len(os.fsencode(path)) > MAX_PATH:
        raise HostError(
            f"the socket path is too long: {path}",
            hint=f"at most {MAX_PATH} bytes: use a shorter XDG_RUNTIME_DIR or name",
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as made:
        try:
            made.bind(path)
            os.chmod(path, 0o600)
            if uid:
                os.chown(path, uid, uid)
            made.listen(_BACKLOG)
        except OSError as error:
            raise HostError(f"{path}: {error.strerror}") from error
        return made.detach()
