"""Sparse disks: a table of pages, and a parent one digit below."""

from __future__ import annotations

import os
import struct

from wirt.errors import CorruptImage, OutOfBounds, UnsupportedImage
from wirt.image.base import Extent, ExtentKind, ImageInfo, OpenOptions, Storage
from wirt.image.formats.mapped import SECTOR, BlockImage, read_metadata, stored_size

SPARSE = b"\xce\x8a\x46\x02"
_HEADER = struct.Struct("<4sIIIQ")
_TABLE = 256
_NOT_ALLOCATED = 0xFFFFFFFF
_PAGE = 32768


class SparseImage(BlockImage):
    format_name = "bochs"

    def __init__(self, storage: Storage, options: OpenOptions) -> None:
        super().__init__()
        self.storage = storage
        self.writable = options.writable
        head = storage.pread(0, _HEADER.size)
        if len(head) < _HEADER.size:
            raise CorruptImage("the header is cut off")
        _, version, page, pages, disk = _HEADER.unpack(head)
        if version not in {1, 2}:
            raise UnsupportedImage(f"Bochs sparse version {version} is not known")
        if page < SECTOR or page & (page - 1) or page > 1 << 30:
            raise CorruptImage(f"pages cannot be {page} bytes long")
        self.block_size: int = page
        self.virtual_size = (pages * page if version == 1 else disk) // SECTOR * SECTOR
        if pages * page < self.virtual_size:
            raise CorruptImage(f"{pages} pages do not hold {disk} bytes")
        raw = read_metadata(storage, _TABLE, 4 * pages, "the page table", options.budget)
        self._table = list(struct.unpack(f"<{pages}I", raw))
        self._data = -(-(_TABLE + 4 * pages) // page) * page
        last = max((n for n in self._table if n != _NOT_ALLOCATED), default=-1)
        self._next = self._data + (last + 1) * page
        if self.writable and self._next > storage.size() + page:
            raise CorruptImage("pages lie beyond the end of the file")

    @property
    def parent_name(self) -> str:
        """The name that a parent would have, if the file's name allows one."""
        name = os.path.basename(self.storage.name)
        return name[:-1] + chr(ord(name[-1]) - 1) if name[-1:] in set("123456789") else ""

    def _run(self, offset: int, limit: int) -> Extent:
        index, inside = divmod(offset, self.block_size)
        length = min(limit, self.block_size - inside)
        number = self._table[index]
        if number == _NOT_ALLOCATED:
            return Extent(offset, length, ExtentKind.HOLE)
        place = self._data + number * self.block_size + inside
        if place >= self.storage.size():
            raise CorruptImage(f"page {index} lies beyond the end of the file", offset=place)
        return Extent(offset, length, ExtentKind.DATA, storage=self.storage, storage_offset=place)

    def _store(self, index: int, content: bytes) -> None:
        place = self._append(content, align=self.block_size)
        number = (place - self._data) // self.block_size
        if number >= _NOT_ALLOCATED:
            raise OutOfBounds("the file cannot grow further")
        self._table[index] = number

    def _publish(self, indexes: list[int]) -> None:
        for index in indexes:
            self.storage.pwrite(_TABLE + 4 * index, struct.pack("<I", self._table[index]))

    def info(self) -> ImageInfo:
        return ImageInfo(
            "bochs",
            self.virtual_size,
            stored_size(self.storage),
            self.block_size,
            backing_name=self.parent_name if self.backing is not None else "",
            backing_format="bochs" if self.backing is not None else "",
            specific={"mode": "sparse"},
        )


def create_sparse(storage: Storage, size: int) -> None:
    pages = -(-size // _PAGE)
    if pages >= 1 << 28:
        raise OutOfBounds("a sparse Bochs disk cannot be as large as this")
    table = -(-(_TABLE + 4 * pages) // _PAGE) * _PAGE
    storage.truncate(table)
    storage.pwrite(0, _HEADER.pack(SPARSE, 2, _PAGE, pages, -(-size // SECTOR) * SECTOR))
    storage.pwrite(_TABLE, b"\xff" * (4 * pages))
