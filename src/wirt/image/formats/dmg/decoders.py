"""Unpacking one chunk: exactly the bytes it should hold, whatever its own words."""

from __future__ import annotations

import bz2
import lzma

from wirt.errors import CorruptImage, OutOfBounds
from wirt.image.formats.cloop import inflate
from wirt.image.formats.dmg import chunks
from wirt.image.formats.dmg.adc import unpack_adc
from wirt.image.formats.dmg.lzfse import unpack_lzfse

_LZMA_MEMORY = 80 << 20


def unpack(kind: int, packed: bytes, length: int) -> bytes:
    """Return ``length`` bytes. Raises CorruptImage; MissingDependency for LZFSE."""
    if kind == chunks.ZLIB:
        return inflate(packed, length)
    if kind == chunks.ADC:
        return unpack_adc(packed, length)
    if kind == chunks.LZFSE:
        return unpack_lzfse(packed, length)
    try:
        content = _stream(kind, packed, length)
    except (OSError, ValueError, EOFError, lzma.LZMAError) as error:
        raise CorruptImage(f"a compressed chunk is broken: {error}") from error
    except MemoryError as error:
        raise OutOfBounds("a compressed chunk needs more memory than there is") from error
    if len(content) != length:
        raise CorruptImage(f"a compressed chunk holds {len(content)} bytes instead of {length}")
    return content


def _stream(kind: int, packed: bytes, length: int) -> bytes:
    if kind == chunks.BZIP2:
        return bz2.BZ2Decompressor().decompress(packed, length)
    return lzma.LZMADecompressor(memlimit=_LZMA_MEMORY).decompress(packed, length)
