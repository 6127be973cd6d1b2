"""An export of an NBD server as positional bytes: several connections, extents, zeroes.

A connection that breaks is an error, unless the name asks for ``reconnect``: then every
request is sent again over a new connection. What was written and not yet flushed may then be
lost without anybody noticing, so the next flush says so.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from wirt.errors import (
    CommandRefused,
    HostError,
    ImageAccessDenied,
    ImageError,
    ImageIoError,
    ImageNoSpace,
    PeerClosed,
    ProtocolError,
    Timeout,
    UnsupportedImage,
    WirtError,
)
from wirt.image.base import Storage
from wirt.protocols.deadline import Deadline
from wirt.protocols.nbd import codec
from wirt.protocols.nbd.client import Connection
from wirt.protocols.nbd.client_handshake import Wish
from wirt.protocols.nbd.codec import Command, ExportFlag
from wirt.protocols.nbd.line import Line, Tls, connect_tcp
from wirt.protocols.nbd.uri import Address, parse_address
from wirt.protocols.unixsocket import connected

T = TypeVar("T")

TIMEOUT = 60.0
"""Seconds that a server may take for one request."""
_LARGEST = 4 << 20
"""Bytes of one request: enough to fill any line, little enough to be in time."""
_LARGEST_ZEROES = 1 << 30
_LARGEST_STATUS = 1 << 31
_SECOND_CONNECTION = 5.0
_RETRY = 0.25


class NbdStorage(Storage):
    """One export; threads may share it. ``timeout`` bounds each request, in seconds."""

    is_remote = True

    def __init__(self, name: str, *, writable: bool = False, timeout: float = TIMEOUT) -> None:
        self.name = name
        self.read_only = not writable
        self._address = parse_address(name)
        self._timeout = timeout
        self._lock = threading.Lock()
        self._unaligned = threading.Lock()
        self._unflushed = False
        self._lost = False
        """A connection broke after writes that no flush has confirmed."""
        self._closed = False
        self._connections = [self._first_connection()]
        self._agreement = self._connections[0].agreement
        many = self._agreement.flags & ExportFlag.CAN_MULTI_CONN
        self._most = self._address.connections if many else 1
        if writable and self._agreement.flags & ExportFlag.READ_ONLY:
            self.close()
            raise ImageAccessDenied("the server serves it read-only", path=name)

    # Connections

    def _first_connection(self) -> Connection:
        try:
            return self._connect(self._timeout)
        except WirtError as error:
            raise _image_error(error, self.name) from error

    def _connect(self, timeout: float) -> Connection:
        address = self._address
        tls = _tls(address)
        deadline = Deadline.after(timeout)
        if address.socket:
            sock, where = connected(address.socket, deadline), address.socket
        else:
            sock = connect_tcp(address.host, address.port, deadline)
            where = f"{address.host}:{address.port}"
        line = Line(sock, where)
        try:
            wish = Wish(address.export, tls=address.tls)
            made = Connection(line, wish, timeout=timeout, tls=tls)
        except BaseException:
            line.close()
            raise
        made.set_timeout(self._timeout)
        return made

    def _choose(self) -> Connection:
        """Return the connection with the least to do; a new one if all are busy."""
        with self._lock:
            if self._closed:
                raise PeerClosed("the storage is closed")
            usable = self._usable()
            best = min(usable, key=lambda one: one.in_flight, default=None)
            if best is not None and (not best.in_flight or len(usable) >= self._most):
                return best
            try:
                made = self._connect(_SECOND_CONNECTION if best else self._timeout)
                self._require_the_same(made)
            except (PeerClosed, Timeout, ProtocolError):
                if best is None:
                    raise
                self._most = len(usable)  # the server has enough
                return best
            self._connections = [*usable, made]
            return made

    def _usable(self) -> list[Connection]:
        """Return the connections that work; one that broke may have taken writes with it."""
        usable = [one for one in self._connections if not one.is_broken]
        self._lost |= self._unflushed and len(usable) < len(self._connections)
        self._connections = usable
        return usable

    def _require_the_same(self, connection: Connection) -> None:
        found, known = connection.agreement, self._agreement
        if (found.size, found.flags) == (known.size, known.flags):
            return
        connection.close()
        if found.size != known.size:
            raise ImageIoError(
                f"the export was resized meanwhile, from {known.size} to {found.size} bytes",
                path=self.name,
                hint="open it again",
            )
        raise ImageIoError("the server offers something else meanwhile", path=self.name)

    def _do(self, what: Callable[[Connection], T], offset: int | None = None) -> T:
        """Do ``what`` on a connection, and again on new ones as long as that was asked for."""
        give_up: float | None = None
        while True:
            try:
                return what(self._choose())
            except (PeerClosed, Timeout, HostError) as error:
                now = time.monotonic()
                give_up = give_up or now + self._address.reconnect
                if now >= give_up or self._closed:
                    raise _image_error(error, self.name, offset) from error
                time.sleep(min(_RETRY, give_up - now))
            except ImageError:
                raise
            except WirtError as error:
                raise _image_error(error, self.name, offset) from error

    # Bytes

    def size(self) -> int:
        return self._agreement.size

    def pread(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.size() - offset))
        buffer = bytearray(length)
        self.pread_into(offset, memoryview(buffer))
        return bytes(buffer)

    def pread_into(self, offset: int, buffer: memoryview) -> None:
        self._check(offset, len(buffer))
        inside = max(0, min(len(buffer), self.size() - offset))
        buffer[inside:] = bytes(len(buffer) - inside)
        buffer = buffer[:inside]
        if self._is_aligned(offset, inside):
            for at, step in self._pieces(offset, inside, _LARGEST):
                piece = buffer[at - offset : at - offset + step]
                self._do(functools.partial(_read, offset=at, view=piece), at)
            return
        start, end = self._aligned(offset, inside)
        whole = bytearray(end - start)
        self.pread_into(start, memoryview(whole))
        buffer[:] = memoryview(whole)[offset - start : offset - start + inside]

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        self._check_write(offset, len(view))
        if not self._is_aligned(offset, len(view)):
            self._write_unaligned(offset, view)
            return
        self._unflushed = True
        for at, step in self._pieces(offset, len(view), _LARGEST):
            piece = view[at - offset : at - offset + step]
            self._do(functools.partial(_write, offset=at, view=piece), at)

    def _write_unaligned(self, offset: int, view: memoryview) -> None:
        start, end = self._aligned(offset, len(view))
        with self._unaligned:  # another thread may write into the same block
            whole = bytearray(end - start)
            self.pread_into(start, memoryview(whole))
            whole[offset - start : offset - start + len(view)] = view
            self.pwrite(start, whole)

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or offset + length >= 1 << 63:
            raise ImageIoError(f"no export has {length} bytes at {offset:#x}", path=self.name)

    def _check_write(self, offset: int, length: int) -> None:
        self._check(offset, length)
        if self.read_only:
            raise ImageAccessDenied("it was opened for reading", path=self.name)
        if offset + length > self.size():
            raise ImageNoSpace(
                "the export ends here, and its client cannot make it longer",
                path=self.name,
                offset=offset,
                hint="serve a larger disk, or write raw",
            )

    def _is_aligned(self, offset: int, length: int) -> bool:
        return not (offset | length) & (self._agreement.blocks.minimum - 1)

    def _aligned(self, offset: int, length: int) -> tuple[int, int]:
        block = self._agreement.blocks.minimum
        return offset // block * block, min(-(-(offset + length) // block) * block, self.size())

    def _pieces(self, offset: int, length: int, most: int) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of requests that the server takes."""
        blocks = self._agreement.blocks
        most = max(min(most, blocks.maximum) // blocks.minimum, 1) * blocks.minimum
        for at in range(offset, offset + length, most):
            yield at, min(most, offset + length - at)

    def truncate(self, size: int) -> None:
        if size != self.size():
            raise UnsupportedImage("an export cannot be resized by its client", path=self.name)

    def flush(self) -> None:
        if not self._agreement.flags & ExportFlag.SEND_FLUSH or self.read_only:
            return
        self._do(lambda one: one.command(Command.FLUSH))
        with self._lock:
            self._usable()
            lost, self._lost, self._unflushed = self._lost, False, False
        if lost:
            raise ImageIoError(
                "the connection broke after writes that had not been flushed: they may be lost",
                path=self.name,
                hint="write again what was written since the last flush",
            )

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        end = min(offset + length, self.size())
        if codec.BASE_ALLOCATION not in dict(self._agreement.contexts):
            if end > offset:
                yield offset, end - offset, True
            return
        while offset < end:
            before = offset
            start = self._aligned(offset, 0)[0]
            step = min(self._aligned(start, end - start)[1] - start, _LARGEST_STATUS)
            for run, state in self._do(functools.partial(_status, offset=start, length=step)):
                stop = min(start + run, end)
                if stop > offset:
                    yield offset, stop - offset, not state & codec.STATE_ZERO
                    offset = stop
                start += run
            if offset == before:
                raise ImageIoError("the server tells nothing of this place", path=self.name)

    def punch_hole(self, offset: int, length: int) -> bool:
        flags = self._agreement.flags
        if not flags & ExportFlag.SEND_WRITE_ZEROES or not self._is_aligned(offset, length):
            return False
        self._check_write(offset, length)
        self._unflushed = True
        block = self._agreement.blocks.minimum
        for at in range(offset, offset + length, _LARGEST_ZEROES // block * block):
            step = min(_LARGEST_ZEROES // block * block, offset + length - at)
            self._do(functools.partial(_zero, offset=at, length=step), at)
        return True

    def close(self) -> None:
        with self._lock:
            self._closed = True
            connections, self._connections = self._connections, []
        for connection in connections:
            connection.close()


def _read(connection: Connection, *, offset: int, view: memoryview) -> None:
    connection.read_into(offset, view)


def _write(connection: Connection, *, offset: int, view: memoryview) -> None:
    connection.write(offset, view)


def _zero(connection: Connection, *, offset: int, length: int) -> None:
    connection.command(Command.WRITE_ZEROES, offset, length)


def _status(connection: Connection, *, offset: int, length: int) -> list[tuple[int, int]]:
    return connection.block_status(offset, length)


def _tls(address: Address) -> Tls | None:
    if not address.tls:
        return None
    from wirt.protocols.nbd import tls

    if address.psk_file:
        return tls.client_psk(address.psk_file, address.user)
    return tls.client_x509(address.certificates, address.hostname or address.host or "localhost")


def _image_error(error: WirtError, name: str, offset: int | None = None) -> WirtError:
    """Say as an error of images what the server, or the way to it, refused."""
    kind: type[ImageError] = ImageIoError
    if isinstance(error, CommandRefused):
        if error.error_class == "ENOSPC":
            kind = ImageNoSpace
        elif error.error_class in {"EPERM", "ERR_POLICY", "ERR_TLS_REQD"}:
            kind = ImageAccessDenied
    elif not isinstance(error, PeerClosed | Timeout | ProtocolError):
        return error  # a missing file or program: not the image's fault
    return kind(error.message, path=name, offset=offset, hint=error.hint)
