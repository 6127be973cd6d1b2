"""LZ4 blocks (no frames): literals and a match by turns.

Specification: "LZ4 Block Format Description" of the lz4 project. A token's upper four bits are
the number of literals, its lower the match's length less 4; 15 goes on in further bytes. The
match's distance is a u16, little-endian. The last literals have no match behind them.
"""

from __future__ import annotations

from wirt.errors import CorruptImage


def unpack_lz4(packed: bytes, most: int) -> bytes:
    """Return what ``packed`` holds, at most ``most`` bytes. Raises CorruptImage."""
    out = bytearray()
    at = 0
    try:
        while at < len(packed):
            token = packed[at]
            count, at = _length(packed, at + 1, token >> 4)
            if at + count > len(packed) or len(out) + count > most:
                raise CorruptImage("an LZ4 block has literals beyond its end")
            out += packed[at : at + count]
            at += count
            if at == len(packed):
                break
            distance = packed[at] | packed[at + 1] << 8
            count, at = _length(packed, at + 2, token & 15)
            _copy(out, distance, count + 4, most)
    except IndexError as error:
        raise CorruptImage("an LZ4 block is cut off") from error
    return bytes(out)


def _length(packed: bytes, at: int, first: int) -> tuple[int, int]:
    """Return a length and where its bytes end."""
    length = first
    if first == 15:
        while packed[at] == 255:
            length += 255
            at += 1
        length += packed[at]
        at += 1
    return length, at


def _copy(out: bytearray, distance: int, count: int, most: int) -> None:
    start = len(out) - distance
    if not distance or start < 0 or len(out) + count > most:
        raise CorruptImage("an LZ4 block refers to what is outside it")
    piece = bytes(out[start : start + count])
    out += (piece * (count // len(piece) + 1))[:count]
