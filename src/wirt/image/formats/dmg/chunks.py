"""The chunks of a UDIF image: which sectors they are, and where and how they are stored."""

from __future__ import annotations

import bisect
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from wirt.errors import CorruptImage, OutOfBounds, UnsupportedImage
from wirt.image.formats.mapped import SECTOR

ZERO, PLAIN, UNUSED = 0, 1, 2
ADC, ZLIB, BZIP2, LZFSE, LZMA = range(0x80000004, 0x80000009)
_COMMENT, _END = 0x7FFFFFFE, 0xFFFFFFFF
_PACKED = frozenset((ADC, ZLIB, BZIP2, LZFSE, LZMA))

_HEADER = 204
_CHUNK = struct.Struct(">IIQQQQ")
_MOST_SECTORS = 1 << 47
_MOST_PACKED = 64 << 20


class Chunk(NamedTuple):
    start: int
    """In bytes of the disk, as ``end``."""
    end: int
    kind: int
    place: int
    """In the file."""
    stored: int


def parse_table(raw: bytes, data_fork: int) -> Iterator[Chunk]:
    """Yield the chunks of one block table. Raises CorruptImage, UnsupportedImage."""
    if len(raw) < _HEADER or raw[:4] != b"mish":
        raise CorruptImage("a block table has no signature")
    first, _, data = struct.unpack_from(">QQQ", raw, 8)
    (count,) = struct.unpack_from(">I", raw, 200)
    if _HEADER + count * _CHUNK.size > len(raw):
        raise CorruptImage(f"a block table is too short for its {count} chunks")
    for number in range(count):
        entry = _CHUNK.unpack_from(raw, _HEADER + number * _CHUNK.size)
        kind, _, start, sectors, offset, length = entry
        if kind == _END:
            return
        if kind != _COMMENT and sectors:
            yield _checked(kind, first + start, sectors, data_fork + data + offset, length)


def _checked(kind: int, first: int, sectors: int, place: int, length: int) -> Chunk:
    if kind not in _PACKED and kind not in {ZERO, PLAIN, UNUSED}:
        raise UnsupportedImage(f"chunks of kind {kind:#x} are not known")
    if first + sectors > _MOST_SECTORS:
        raise CorruptImage(f"a chunk begins at sector {first} and has {sectors}")
    if kind in _PACKED and (sectors * SECTOR > _MOST_PACKED or length > _MOST_PACKED):
        raise OutOfBounds(f"a compressed chunk has {sectors} sectors in {length} bytes")
    return Chunk(first * SECTOR, (first + sectors) * SECTOR, kind, place, length)


class ChunkMap:
    """All chunks of an image, found by where on the disk they are."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self._chunks = sorted(chunks)
        end = 0
        for chunk in self._chunks:
            if chunk.start < end:
                raise CorruptImage(f"two chunks hold the same sectors, at {chunk.start:#x}")
            end = chunk.end
        self.end = end
        self._starts = [chunk.start for chunk in self._chunks]

    def find(self, offset: int) -> tuple[Chunk | None, int]:
        """Return the chunk at ``offset``, or None, and where that or the gap ends."""
        index = bisect.bisect_right(self._starts, offset)
        if index and offset < self._chunks[index - 1].end:
            chunk = self._chunks[index - 1]
            return chunk, chunk.end
        return None, self._starts[index] if index < len(self._starts) else 1 << 62
