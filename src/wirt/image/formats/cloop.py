"""cloop: the compressed disks of KNOPPIX, version 2.

Specification: ``compressed_loop.h`` of cloop-utils. Big-endian.

::

    0    a shell script, 128 bytes: its second line is "#V2.0 Format"
    128  block size   132 blocks
    136  blocks + 1 offsets (u64): where each compressed block begins; the last is the end
    data zlib streams, one for each block
"""

from __future__ import annotations

import struct
import zlib

from wirt.errors import CorruptImage, NotThisFormat, OutOfBounds, UnsupportedImage
from wirt.image.base import Extent, ExtentKind, Format, Image, ImageInfo, OpenOptions, Storage
from wirt.image.formats.mapped import (
    SECTOR,
    MappedImage,
    read_exactly,
    read_metadata,
    stored_size,
)

_PREAMBLE = b"#!/bin/sh\n#V2.0 Format\n"
_MAX_BLOCK = 64 << 20


class CloopImage(MappedImage):
    format_name = "cloop"

    def __init__(self, storage: Storage, options: OpenOptions) -> None:
        self.storage = storage
        head = storage.pread(0, 136)
        if len(head) < 136 or not head.startswith(b"#!/bin/sh\n#V"):
            raise NotThisFormat("there is no cloop preamble")
        if not head.startswith(_PREAMBLE):
            raise UnsupportedImage(f"only cloop 2.0 is supported, not {head[11:16]!r}")
        self.block_size, count = struct.unpack(">II", head[128:136])
        if not self.block_size or self.block_size % SECTOR or self.block_size > _MAX_BLOCK:
            raise CorruptImage(f"blocks cannot be {self.block_size} bytes long")
        raw = read_metadata(storage, 136, 8 * (count + 1), "the offsets", options.budget)
        self._offsets = struct.unpack(f">{count + 1}Q", raw)
        self.virtual_size = count * self.block_size
        floor, factor = options.budget.expansion_floor, options.budget.expansion
        if self.virtual_size > max(floor, factor * storage.size()):
            raise OutOfBounds("the image expands beyond the budget")
        self._last: tuple[int, bytes] = (-1, b"")

    def _run(self, offset: int, limit: int) -> Extent:
        inside = offset % self.block_size
        length = min(limit, self.block_size - inside)
        return Extent(offset, length, ExtentKind.DATA, compressed=True)

    def _read_packed(self, offset: int, length: int) -> bytes:
        parts = []
        while length:
            index, inside = divmod(offset, self.block_size)
            part = self._block(index)[inside : inside + length]
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def _block(self, index: int) -> bytes:
        number, content = self._last
        if number == index:
            return content
        start, end = self._offsets[index], self._offsets[index + 1]
        if end < start or end - start > 2 * self.block_size + 4096:
            raise CorruptImage(f"block {index} has a wrong length", offset=start)
        packed = read_exactly(self.storage, start, end - start, f"block {index}")
        content = inflate(packed, self.block_size)
        self._last = (index, content)
        return content

    def info(self) -> ImageInfo:
        size = stored_size(self.storage)
        return ImageInfo("cloop", self.virtual_size, size, self.block_size)


def inflate(packed: bytes, length: int, *, window: int = 15) -> bytes:
    """Return exactly ``length`` bytes out of a zlib stream. Raises CorruptImage."""
    try:
        content = zlib.decompressobj(window).decompress(packed, length)
    except zlib.error as error:
        raise CorruptImage(f"a compressed block is broken: {error}") from error
    if len(content) != length:
        raise CorruptImage(f"a compressed block holds {len(content)} bytes instead of {length}")
    return content


class CloopFormat(Format):
    name = "cloop"
    suffixes = (".cloop",)
    images = (CloopImage,)
    has_compression = True

    def probe(self, storage: Storage) -> bool:
        return storage.pread(0, len(_PREAMBLE)) == _PREAMBLE

    def open(self, storage: Storage, options: OpenOptions) -> Image:
        return CloopImage(storage, options)


FORMAT = CloopFormat()
