"""The protocol of wirt's resident guest helper, without I/O.

A stream (a virtio-serial port) between one host client and one helper process.

*Opening.* The host sends HELLO: the 16 bytes of MAGIC, 16 random bytes, its version (1
byte). The helper answers with the same MAGIC and random bytes and its own version.
Everything either side received before is of a dead session and thrown away.

*Frames* follow, in both directions::

    offset  size  content
    0       1     zero
    1       1     type
    2       2     length of the payload, big endian
    4       1     zero
    5       n     payload, at most 32763 bytes

MAGIC holds no zero byte and no payload from the host holds MAGIC (it is cut into two
frames there), so a HELLO is found wherever an earlier client broke off.

*Host to guest*: PART and REQUEST (a request is the joined payloads of any PARTs and one
REQUEST: strings, each after its length as 32 bits big endian; the first is the verb),
STDIN, STDIN_EOF, SIGNAL (u8 number, to the command's process group), WINDOW_SIZE (u16 rows,
u16 columns).

*Guest to host*: STARTED (u32 process id), STDOUT, STDERR, STDIN_ACK (u32 bytes taken; the
host keeps at most 128 KiB unacknowledged), EXIT (u8 kind: 0 code, 1 signal; u8 value), ERROR
(text: the request failed), REPLY (strings as in a request), RESET (the helper has begun
anew; no session lives on).

A request is answered by REPLY or ERROR; ``exec`` by STARTED … EXIT, or ERROR. Then the next
request may follow. When the host closes the stream, the command is killed.
"""

from __future__ import annotations

import enum
import os
import struct
from collections.abc import Iterable, Iterator

import msgspec

from wirt.errors import ProtocolError
from wirt.units import KIB

VERSION = 1
MAGIC = b"\xf9wirt-guest\r\n\x1a\xfe\x01"
NONCE_SIZE = 16
HELLO_SIZE = len(MAGIC) + NONCE_SIZE + 1
MAX_PAYLOAD = 32763
STDIN_WINDOW = 128 * KIB

_HEADER = struct.Struct(">BBHB")
_LENGTH = struct.Struct(">I")


class FrameType(enum.IntEnum):
    PART = 0x01
    REQUEST = 0x02
    STDIN = 0x03
    STDIN_EOF = 0x04
    SIGNAL = 0x05
    WINDOW_SIZE = 0x06
    STDOUT = 0x41
    STDERR = 0x42
    EXIT = 0x43
    ERROR = 0x44
    REPLY = 0x45
    RESET = 0x46
    STARTED = 0x47
    STDIN_ACK = 0x48


_FROM_GUEST = frozenset(kind for kind in FrameType if kind >= FrameType.STDOUT)


class Frame(msgspec.Struct, frozen=True):
    kind: FrameType
    payload: bytes = b""


def encode_hello(nonce: bytes) -> bytes:
    return MAGIC + nonce + bytes([VERSION])


def encode_frame(kind: FrameType, payload: bytes = b"") -> bytes:
    """Return one frame; the payload must be short and free of MAGIC: see ``encode_frames``."""
    return _HEADER.pack(0, kind, len(payload), 0) + payload


def encode_frames(kind: FrameType, payload: bytes) -> bytes:
    """Return ``payload`` as frames of one kind, cut so that MAGIC is in none."""
    return b"".join(encode_frame(kind, piece) for piece in _pieces(payload))


def encode_request(strings: Iterable[bytes]) -> bytes:
    body = b"".join(_LENGTH.pack(len(string)) + string for string in strings)
    *parts, last = _pieces(body)
    frames = [encode_frame(FrameType.PART, part) for part in parts]
    return b"".join([*frames, encode_frame(FrameType.REQUEST, last)])


def _pieces(payload: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(payload):
        end = min(start + MAX_PAYLOAD, len(payload))
        magic = payload.find(MAGIC, start, end)
        if magic >= 0:
            end = magic + len(MAGIC) // 2
        yield payload[start:end]
        start = end


def parse_strings(payload: bytes) -> list[bytes]:
    """Return the strings of a REPLY. Raises ProtocolError."""
    strings = []
    offset = 0
    while offset < len(payload):
        if len(payload) - offset < _LENGTH.size:
            raise ProtocolError("the guest's reply ends within a length")
        (length,) = _LENGTH.unpack_from(payload, offset)
        offset += _LENGTH.size
        if length > len(payload) - offset:
            raise ProtocolError("the guest's reply ends within a string")
        strings.append(payload[offset : offset + length])
        offset += length
    return strings


def parse_number(frame: Frame) -> int:
    """Return the number in STARTED or STDIN_ACK. Raises ProtocolError."""
    if len(frame.payload) != _LENGTH.size:
        raise ProtocolError(f"a frame {frame.kind.name} of {len(frame.payload)} bytes")
    number: int = _LENGTH.unpack(frame.payload)[0]
    return number


def parse_exit(frame: Frame) -> int:
    """Return the exit code in EXIT; 128 and the number for a signal, as shells do."""
    if len(frame.payload) != 2 or frame.payload[0] > 1:
        raise ProtocolError("the guest sent an exit that is none")
    kind, value = frame.payload
    return 128 + value if kind else value


class GuestDecoder:
    """Bytes from the helper to frames; silent until our HELLO has been answered.

    Whatever bytes are fed, the outcome is frames or ProtocolError. Holds at most one
    unfinished frame (64 KiB).
    """

    def __init__(self) -> None:
        self.nonce = os.urandom(NONCE_SIZE)
        self.peer_version: int | None = None
        self._pending = b""

    def feed(self, data: bytes) -> list[Frame]:
        self._pending += data
        if self.peer_version is None:
            self._find_answer()
        if self.peer_version is None:
            return []
        frames = []
        offset = 0
        while (end := self._frame_end(offset)) is not None:
            frames.append(self._parse(offset, end))
            offset = end
        self._pending = self._pending[offset:]
        return frames

    def _find_answer(self) -> None:
        expected = MAGIC + self.nonce
        found = self._pending.find(expected)
        if found < 0:
            self._pending = self._pending[-HELLO_SIZE:]
            return
        end = found + HELLO_SIZE
        if len(self._pending) >= end:
            self.peer_version = self._pending[end - 1]
            self._pending = self._pending[end:]
            if self.peer_version != VERSION:
                raise ProtocolError(
                    f"the guest's helper speaks protocol {self.peer_version}, not {VERSION}",
                    hint="rebuild the guest image with this version of wirt",
                )

    def _frame_end(self, offset: int) -> int | None:
        if len(self._pending) - offset < _HEADER.size:
            return None
        first, kind, length, last = _HEADER.unpack_from(self._pending, offset)
        if first or last or kind not in _FROM_GUEST:
            raise ProtocolError("the guest's helper sent what is not a frame")
        end: int = offset + _HEADER.size + length
        return end if len(self._pending) >= end else None

    def _parse(self, offset: int, end: int) -> Frame:
        kind = FrameType(self._pending[offset + 1])
        return Frame(kind, self._pending[offset + _HEADER.size : end])
