"""Capture files, read as they grow and written.

The classic format (draft-ietf-opsawg-pcap), in the byte order of who wrote it::

    magic 0xa1b2c3d4 (4), version 2.4 (2 + 2), zone, precision (4 + 4), longest (4), link type (4)
    for each frame: seconds (4), microseconds (4), bytes here (4), bytes on the wire (4), frame
"""

from __future__ import annotations

import struct

import msgspec

from wirt.errors import ProtocolError

ETHERNET = 1
LONGEST = 256 << 10
_MAGIC = 0xA1B2C3D4
_HEADER = struct.Struct("IHHiIII")
_FRAME = struct.Struct("IIII")


class Frame(msgspec.Struct, frozen=True):
    """A frame, when it passed (seconds since 1970), and its length before it was cut."""

    time: float
    data: bytes
    length: int


def pack_header() -> bytes:
    """Return the beginning of a file of Ethernet frames."""
    return struct.pack("<IHHiIII", _MAGIC, 2, 4, 0, 0, LONGEST, ETHERNET)


def pack_frame(frame: Frame) -> bytes:
    """Return a frame with its header."""
    seconds = int(frame.time)
    microseconds = min(999_999, int((frame.time - seconds) * 1_000_000))
    sizes = len(frame.data), frame.length
    return struct.pack("<IIII", seconds & 0xFFFFFFFF, microseconds, *sizes) + frame.data


class PcapDecoder:
    """Bytes in, frames out; holds at most one frame that is not complete.

    ``feed`` raises ProtocolError for what is no capture file, and nothing else.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._order = ""

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that are complete by now."""
        self._buffer += data
        if not self._order and not self._read_header():
            return []
        frames = []
        while (frame := self._next()) is not None:
            frames.append(frame)
        return frames

    def _read_header(self) -> bool:
        if len(self._buffer) < _HEADER.size:
            return False
        for order in "<>":
            if struct.unpack_from(f"{order}I", self._buffer)[0] == _MAGIC:
                self._order = order
        if not self._order:
            raise ProtocolError("this is no capture file")
        link_type = struct.unpack_from(f"{self._order}I", self._buffer, 20)[0]
        if link_type & 0xFFFF != ETHERNET:
            raise ProtocolError(f"a capture of link type {link_type}, not of Ethernet")
        del self._buffer[: _HEADER.size]
        return True

    def _next(self) -> Frame | None:
        if len(self._buffer) < _FRAME.size:
            return None
        seconds, micro, here, length = struct.unpack_from(f"{self._order}IIII", self._buffer)
        if here > LONGEST:
            raise ProtocolError(f"a captured frame of {here} bytes")
        if len(self._buffer) < _FRAME.size + here:
            return None
        data = bytes(self._buffer[_FRAME.size : _FRAME.size + here])
        del self._buffer[: _FRAME.size + here]
        return Frame(seconds + micro / 1_000_000, data, length)
