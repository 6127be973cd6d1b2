"""LZFSE and LZVN chunks, through the optional module ``lzfse``.

The module cannot be told where to stop, and a few bytes can stand for many: a stream is
therefore unpacked block by block, each behind the window of bytes that it may refer to.

::

    block  "bvx-" u32 bytes, the bytes
           "bvxn" u32 bytes out, u32 bytes in, LZVN codes
           "bvx2" u32 bytes out, three u64: bits 20-39 of the first are the bytes of the
                  literals, 40-59 of the second those of the matches, 0-31 of the third those of
                  this header
           "bvx$" the end
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from wirt.errors import CorruptImage, MissingDependency

_WINDOW = 1 << 18
_END = b"bvx$"


def unpack_lzfse(packed: bytes, length: int) -> bytes:
    """Return exactly ``length`` bytes. Raises CorruptImage, MissingDependency."""
    decode = _decoder()
    out = bytearray()
    at = 0
    while packed[at : at + 4] != _END:
        size, made = _block(packed, at)
        if not made or len(out) + made > length:
            raise CorruptImage("an LZFSE chunk holds more than it should")
        out += _unpack_block(decode, bytes(out[-_WINDOW:]), packed[at : at + size], made)
        at += size
    if len(out) != length:
        raise CorruptImage(f"an LZFSE chunk holds {len(out)} bytes instead of {length}")
    return bytes(out)


def _decoder() -> Callable[[bytes], bytes]:
    try:
        from lzfse import decompress, error  # type: ignore[import-untyped]
    except ImportError as missing:
        raise MissingDependency(
            "LZFSE chunks need the Python module lzfse", hint="pip install 'wirt[apple]'"
        ) from missing

    def decode(stream: bytes) -> bytes:
        try:
            return bytes(decompress(stream))
        except (error, ValueError, MemoryError) as broken:
            raise CorruptImage("an LZFSE chunk is broken") from broken

    return decode


def _block(packed: bytes, at: int) -> tuple[int, int]:
    """Return how long the block at ``at`` is, and how many bytes it says to make."""
    magic = packed[at : at + 4]
    try:
        (made,) = struct.unpack_from("<I", packed, at + 4)
        if magic == b"bvx-":
            size = 8 + made
        elif magic == b"bvxn":
            size = 12 + struct.unpack_from("<I", packed, at + 8)[0]
        elif magic == b"bvx2":
            first, second, third = struct.unpack_from("<QQQ", packed, at + 8)
            size = (third & 0xFFFFFFFF) + (first >> 20 & 0xFFFFF) + (second >> 40 & 0xFFFFF)
        else:
            raise CorruptImage(f"an LZFSE chunk has a block {magic!r}")
    except struct.error as error:
        raise CorruptImage("an LZFSE chunk is cut off") from error
    if at + size > len(packed):
        raise CorruptImage("an LZFSE chunk is cut off")
    return size, made


def _unpack_block(
    decode: Callable[[bytes], bytes], window: bytes, block: bytes, made: int
) -> bytes:
    if block[:4] == b"bvx-":
        return block[8:]
    before = b"bvx-" + struct.pack("<I", len(window)) + window if window else b""
    content = decode(before + block + _END)[len(window) :]
    if len(content) != made:
        raise CorruptImage("an LZFSE block does not hold what it says")
    return content
