"""Unpacking one block, never to more than it may hold."""

from __future__ import annotations

import lzma
import zlib

from wirt.errors import CorruptImage, OutOfBounds
from wirt.image.formats.cloop.lz4 import unpack_lz4
from wirt.image.formats.cloop.lzo import unpack_lzo

ZLIB, PLAIN, XZ, LZ4, LZO = range(5)
"""As version 4 numbers them."""
_XZ_MEMORY = 80 << 20


def inflate(packed: bytes, length: int, *, window: int = 15) -> bytes:
    """Return exactly ``length`` bytes out of a zlib stream. Raises CorruptImage."""
    content = _inflate(packed, length, window)
    if len(content) != length:
        raise CorruptImage(f"a compressed block holds {len(content)} bytes instead of {length}")
    return content


def _inflate(packed: bytes, most: int, window: int) -> bytes:
    try:
        return zlib.decompressobj(window).decompress(packed, most)
    except zlib.error as error:
        raise CorruptImage(f"a compressed block is broken: {error}") from error


def unpack(codec: int, packed: bytes, most: int) -> bytes:
    """Return what a block holds, at most ``most`` bytes. Raises CorruptImage."""
    if codec == PLAIN:
        return packed[:most]
    if codec == ZLIB:
        return _inflate(packed, most, 15)
    if codec == LZ4:
        return unpack_lz4(packed, most)
    if codec == LZO:
        return unpack_lzo(packed, most)
    try:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY).decompress(packed, most)
    except (lzma.LZMAError, EOFError) as error:
        raise CorruptImage(f"a compressed block is broken: {error}") from error
    except MemoryError as error:
        raise OutOfBounds("a compressed block needs more memory than there is") from error
