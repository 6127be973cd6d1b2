"""SESPARSE extents: the space-efficient snapshots of ESXi 6.5 and later. Read only.

There is no specification. All fields are u64, little-endian, places and sizes in sectors.

::

    header 0 magic 0xcafebabe  8 version 2.1  16 capacity  24 grain (8)  32 grain table (64)
          128 directory 136 its size  144 tables 152 size  ...  192 grains 200 size
    directory  0 no table, else 0x1 << 60 | number of the table
    table      top 4 bits: 0 not allocated, 1 unmapped and 2 zero (both read as zeros), 3 data;
               the grain's number: its low 12 bits in bits 48-59, the rest in bits 0-47
"""

from __future__ import annotations

import struct

from wirt.errors import CorruptImage, NotThisFormat, OutOfBounds, UnsupportedImage
from wirt.image.base import Budget, Extent, ExtentKind, Storage
from wirt.image.formats.mapped import SECTOR, read_exactly, read_metadata

MAGIC = 0xCAFEBABE
_VERSION = 0x200000001
_HEADER = struct.Struct("<26Q")
_CACHED_TABLES = 64


class SeSparseExtent:
    def __init__(self, storage: Storage, budget: Budget) -> None:
        self.storage = storage
        head = storage.pread(0, SECTOR)
        if len(head) < SECTOR or int.from_bytes(head[:8], "little") != MAGIC:
            raise NotThisFormat("there is no SESPARSE header")
        f = _HEADER.unpack_from(head)
        if f[1] != _VERSION:
            raise UnsupportedImage(f"SESPARSE version {f[1]:#x} is not known")
        capacity, grain, table = f[2:5]
        if grain != 8 or table != 64:
            raise UnsupportedImage(f"SESPARSE grains of {grain}, tables of {table} sectors")
        if capacity > 1 << 44:
            raise OutOfBounds(f"an extent of {capacity} sectors")
        self.length = capacity * SECTOR
        self.grain = grain * SECTOR
        self._entries = table * SECTOR // 8
        self._per_table = self._entries * self.grain
        self._tables_at, self._grains_at = f[18] * SECTOR, f[24] * SECTOR
        count = -(-self.length // self._per_table)
        if 8 * count > f[17] * SECTOR:
            raise CorruptImage("the grain directory is too short for the disk")
        raw = read_metadata(storage, f[16] * SECTOR, 8 * count, "the grain directory", budget)
        self._directory: tuple[int, ...] = struct.unpack(f"<{count}Q", raw)
        self._tables: dict[int, tuple[int, ...]] = {}

    def _table(self, number: int) -> tuple[int, ...] | None:
        entry = self._directory[number]
        if not entry:
            return None
        if entry >> 32 != 0x10000000:
            raise CorruptImage(f"entry {number} of the grain directory is {entry:#x}")
        table = self._tables.get(number)
        if table is None:
            if len(self._tables) >= _CACHED_TABLES:
                self._tables.clear()
            size = 8 * self._entries
            at = self._tables_at + (entry & 0xFFFFFFFF) * size
            raw = read_exactly(self.storage, at, size, "a grain table")
            table = self._tables[number] = struct.unpack(f"<{self._entries}Q", raw)
        return table

    def run(self, offset: int, limit: int) -> Extent:
        """Return the run at ``offset`` of the extent."""
        number, inside = divmod(offset, self._per_table)
        table = self._table(number)
        if table is None:
            return Extent(offset, min(limit, self._per_table - inside), ExtentKind.HOLE)
        entry = table[inside // self.grain]
        within = inside % self.grain
        length = min(limit, self.grain - within)
        kind = entry >> 60
        if kind == 3:
            index = entry >> 48 & 0xFFF | (entry & 0xFFFFFFFFFFFF) << 12
            place = self._grains_at + index * self.grain + within
            if place >= self.storage.size():
                raise CorruptImage("a grain lies beyond the end of the file", offset=place)
            return Extent(
                offset, length, ExtentKind.DATA, storage=self.storage, storage_offset=place
            )
        if kind > 3 or (kind == 0 and entry):
            raise CorruptImage(f"a grain table says {entry:#x}", offset=offset)
        return Extent(offset, length, ExtentKind.HOLE if kind == 0 else ExtentKind.ZERO)
