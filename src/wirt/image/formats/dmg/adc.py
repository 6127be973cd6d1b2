"""Apple Data Compression: an LZ77 of three kinds of codes, told apart by their first bits.

::

    1nnnnnnn                    n + 1 bytes follow as they are
    01nnnnnn dddddddd dddddddd  copy n + 4 bytes from d + 1 bytes back
    00nnnndd dddddddd           copy n + 3 bytes from d + 1 bytes back
"""

from __future__ import annotations

from wirt.errors import CorruptImage


def unpack_adc(packed: bytes, length: int) -> bytes:
    """Return exactly ``length`` bytes. Raises CorruptImage."""
    out = bytearray()
    at = 0
    try:
        while len(out) < length:
            code = packed[at]
            if code & 0x80:
                count = (code & 0x7F) + 1
                out += packed[at + 1 : at + 1 + count]
                at += 1 + count
                if at > len(packed):
                    raise CorruptImage("an ADC chunk is cut off")
            elif code & 0x40:
                _copy(out, (code & 0x3F) + 4, (packed[at + 1] << 8 | packed[at + 2]) + 1)
                at += 3
            else:
                _copy(out, (code >> 2 & 0xF) + 3, ((code & 3) << 8 | packed[at + 1]) + 1)
                at += 2
    except IndexError as error:
        raise CorruptImage("an ADC chunk is cut off") from error
    if len(out) != length:
        raise CorruptImage(f"an ADC chunk holds {len(out)} bytes instead of {length}")
    return bytes(out)


def _copy(out: bytearray, count: int, distance: int) -> None:
    start = len(out) - distance
    if start < 0:
        raise CorruptImage("an ADC chunk refers to what is before it")
    piece = out[start : start + count]
    while len(piece) < count:  # the copy overlaps what it makes
        piece += piece[: count - len(piece)]
    out += piece
