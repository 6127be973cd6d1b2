"""A file from a TFTP server: fetched whole when it is opened, since TFTP knows no places.

Specifications: RFC 1350 (protocol), 2347 (options), 2348 (blksize), 2349 (tsize, timeout),
7440 (windowsize). The copy lies in a temporary file without a name.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import Any, Self
from urllib.parse import unquote

import msgspec

from wirt.errors import ImageAccessDenied, ImageError, ImageIoError, OutOfBounds
from wirt.image.storage.scratch import Scratch
from wirt.image.storage.url import Url, parse_url

_PORTS = {"tftp": 69}
_READ, _DATA, _ACKNOWLEDGE, _ERROR, _OPTIONS = 1, 3, 4, 5, 6
_PLAIN_BLOCK = 512
_BLOCK = 1428
"""Fits an Ethernet frame with IPv4 or IPv6."""
_WINDOW = 16
_SECONDS = 1.0
_ATTEMPTS = 8
_LARGEST_PACKET = 65536
MOST = 64 << 30
"""A server may send without end: what is more than 64 GiB is refused."""


class _Terms(msgspec.Struct):
    """What the server agreed to."""

    block: int = _PLAIN_BLOCK
    window: int = 1
    size: int | None = None


class TftpStorage(Scratch):
    """The copy of one file. Raises ImageError, UsageError for an address that is none."""

    def __init__(self, name: str, *, limit: int = MOST) -> None:
        url = parse_url(name, _PORTS)
        super().__init__()
        try:
            with _Transfer(url, limit) as transfer:
                transfer.run(self)
        except BaseException:
            self.close()
            raise
        self.name = url.shown
        self.read_only = True


class _Transfer:
    """One download. The server answers from a port of its own choice, and only that counts."""

    def __init__(self, url: Url, limit: int) -> None:
        self._url = url
        self._limit = limit
        self._terms = _Terms()
        self._peer: tuple[Any, ...] | None = None
        try:
            found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_DGRAM)
        except OSError as error:
            raise self._error(f"the server is not known: {error.strerror}") from error
        family, kind, protocol, _, address = found[0]
        self._server: tuple[Any, ...] = address
        self._socket = socket.socket(family, kind, protocol)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def run(self, target: Scratch) -> None:
        """Receive the whole file."""
        try:
            self._receive(target)
        except OSError as error:
            raise self._error(error.strerror or str(error)) from error

    def _receive(self, target: Scratch) -> None:
        request = self._request()
        self._send(request)
        last, behind, offset, failures = 0, 0, 0, 0
        answer = request
        while True:
            packet = self._packet()
            if packet is None:
                failures += 1
                if failures >= _ATTEMPTS:
                    raise self._error(f"no answer in {_ATTEMPTS * _SECONDS:.0f} s")
                self._send(answer)
                behind = 0
                continue
            code, number, body = packet
            if code == _OPTIONS and not offset:
                self._agree(body)
                answer = struct.pack("!HH", _ACKNOWLEDGE, 0)
                self._send(answer)
                failures = 0
            elif code == _DATA and number == last + 1 & 0xFFFF:
                target.pwrite(offset, body)
                offset += len(body)
                self._check_length(offset)
                last, behind, failures = number, behind + 1, 0
                answer = struct.pack("!HH", _ACKNOWLEDGE, last)
                ended = len(body) < self._terms.block
                if ended or behind >= self._terms.window:
                    self._send(answer)
                    behind = 0
                if ended:
                    return self._check_whole(offset)
            elif code == _DATA and behind:
                # One of the window is lost: say which was the last good one (RFC 7440).
                self._send(answer)
                behind = 0

    def _request(self) -> bytes:
        name = unquote(self._url.path).removeprefix("/")
        if not name or "\0" in name:
            raise self._error("the address names no file")
        words = [
            name, "octet", "tsize", "0", "blksize", str(_BLOCK), "windowsize", str(_WINDOW),
        ]  # fmt: skip
        return struct.pack("!H", _READ) + b"".join(word.encode() + b"\0" for word in words)

    def _send(self, packet: bytes) -> None:
        self._socket.sendto(packet, self._peer or self._server)

    def _packet(self) -> tuple[int, int, bytes] | None:
        """Return (code, number, the rest) of the next packet from the server; None: none came."""
        deadline = time.monotonic() + _SECONDS
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                data, peer = self._socket.recvfrom(_LARGEST_PACKET)
            except TimeoutError:
                return None
            if peer[0] != self._server[0] or (self._peer and peer != self._peer) or len(data) < 4:
                continue  # a stranger's, or a late one of another transfer
            self._peer = peer
            code, number = struct.unpack_from("!HH", data)
            if code == _ERROR:
                raise self._refusal(number, data[4:])
            return code, number, data[2:] if code == _OPTIONS else data[4:]
        return None

    def _agree(self, body: bytes) -> None:
        words = body.split(b"\0")
        for name, text in zip(words[::2], words[1::2], strict=False):
            if not text.isdigit() or len(text) > 18:
                continue
            value = int(text)
            match name.lower():
                case b"blksize" if 8 <= value <= _BLOCK:
                    self._terms.block = value
                case b"windowsize" if 1 <= value <= _WINDOW:
                    self._terms.window = value
                case b"tsize":
                    self._terms.size = value
                    self._check_length(value)

    def _check_length(self, length: int) -> None:
        if length > self._limit:
            raise OutOfBounds(
                f"the server sends more than {self._limit >> 20} MiB", path=self._url.shown
            )

    def _check_whole(self, length: int) -> None:
        if self._terms.size is not None and self._terms.size != length:
            raise self._error(f"{length} of {self._terms.size} bytes arrived")

    def _refusal(self, number: int, text: bytes) -> ImageError:
        words = text.split(b"\0")[0][:200].decode("ascii", "replace")
        words = "".join(char if char.isprintable() else "?" for char in words)
        if number == 2:
            return ImageAccessDenied(f"the server refuses: {words}", path=self._url.shown)
        return self._error(f"the server refuses: {words or f'error {number}'}")

    def _error(self, message: str) -> ImageIoError:
        return ImageIoError(message, path=self._url.shown, hint="check the address and the server")
