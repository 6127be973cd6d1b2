"""Where a server listens."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import quote

from wirt.errors import Busy, HostError

_BACKLOG = 16
_LONGEST_UNIX_PATH = 107


class Listening(NamedTuple):
    """A listening socket, and what it is called in a URI."""

    socket: socket.socket
    path: str = ""
    """Of a unix socket."""
    place: str = ""
    """Host and port."""

    def uri(self, export: str, *, tls: bool) -> str:
        """Return the URI that clients use."""
        scheme, name = "nbds" if tls else "nbd", quote(export)
        if self.path:
            return f"{scheme}+unix:///{name}?socket={quote(self.path)}"
        return f"{scheme}://{self.place}/{name}"


@contextlib.contextmanager
def listening_unix(path: str) -> Iterator[Listening]:
    """Listen on a socket that only this user may use; its name is removed at the end.

    Raises Busy if somebody listens there, HostError.
    """
    if len(os.fsencode(path)) > _LONGEST_UNIX_PATH:
        raise HostError(f"the socket path is too long: {path}", hint="at most 107 bytes")
    _remove_stale(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
        before = os.umask(0o177)
        try:
            listener.bind(path)
        except OSError as error:
            raise HostError(f"cannot listen on {path}: {error.strerror}") from error
        finally:
            os.umask(before)
        own = os.lstat(path)
        try:
            listener.listen(_BACKLOG)
            yield Listening(listener, path=os.path.abspath(path))
        finally:
            with contextlib.suppress(OSError):
                if os.path.samestat(own, os.lstat(path)):
                    os.unlink(path)


def _remove_stale(path: str) -> None:
    """Remove what a server that was killed left behind. Raises Busy."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise Busy(f"{path} exists and is no socket", hint="choose another path")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            raise HostError(f"{path}: {error.strerror}") from error
    raise Busy(f"somebody listens on {path}", hint="choose another path, or end that server")


@contextlib.contextmanager
def listening_tcp(host: str, port: int) -> Iterator[Listening]:
    """Listen on one address of this host. Raises Busy, HostError."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind | socket.SOCK_CLOEXEC)
    except (OSError, UnicodeError) as error:
        raise HostError(f"{host}: {getattr(error, 'strerror', None) or error}") from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            raise Busy(
                f"cannot listen on {host}:{port}: {error.strerror}", hint="choose another port"
            ) from error
        host, port = listener.getsockname()[:2]
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        yield Listening(listener, place=place)
