"""Sparse extents: KDMV (hosted, also compressed) and COWD (vmfsSparse)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from wirt.errors import CorruptImage, NotThisFormat, OutOfBounds, UnsupportedImage
from wirt.image.base import Budget, Extent, ExtentKind, Storage
from wirt.image.formats.mapped import SECTOR, read_exactly, read_metadata

KDMV, COWD = b"KDMV", b"COWD"
FLAG_NEWLINE, FLAG_SPARE, FLAG_ZERO, FLAG_COMPRESSED, FLAG_MARKERS = 1, 2, 4, 1 << 16, 1 << 17
DIRECTORY_AT_END = 0xFFFFFFFFFFFFFFFF
_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
_CACHED_TABLES = 256


@dataclass(frozen=True, slots=True)
class SparseHeader:
    flags: int
    capacity: int
    grain: int
    descriptor: int
    descriptor_sectors: int
    table_entries: int
    spare_directory: int
    directory: int
    overhead: int
    compression: int = 0
    version: int = 1

    @classmethod
    def parse(cls, data: bytes) -> SparseHeader:
        if len(data) < SECTOR or data[:4] != KDMV:
            raise NotThisFormat("there is no sparse extent header")
        f = _HEADER.unpack_from(data)
        return cls(f[2], f[3], f[4], f[5], f[6], f[7], f[8], f[9], f[10], f[13], f[1])

    @classmethod
    def parse_cowd(cls, data: bytes) -> SparseHeader:
        if len(data) < SECTOR or data[:4] != COWD:
            raise NotThisFormat("there is no COWD header")
        _, _, sectors, grain, directory, _ = struct.unpack_from("<6I", data, 4)
        return cls(0, sectors, grain, 0, 0, 4096, 0, directory, 0)

    def pack(self) -> bytes:
        return _HEADER.pack(
            KDMV, self.version, self.flags, self.capacity, self.grain, self.descriptor,
            self.descriptor_sectors, self.table_entries, self.spare_directory, self.directory,
            self.overhead, 0, b"\n \r\n", self.compression,
        ).ljust(SECTOR, b"\0")  # fmt: skip

    def check(self) -> None:
        grain = self.grain
        if not 1 <= grain <= 1 << 17 or grain & (grain - 1):
            raise CorruptImage(f"grains cannot be {grain} sectors long")
        if not 1 <= self.table_entries <= 4096:
            raise CorruptImage(f"grain tables cannot have {self.table_entries} entries")
        if self.version > 3:
            raise UnsupportedImage(f"VMDK version {self.version} is not known")
        if self.flags & FLAG_COMPRESSED and self.compression != 1:
            raise UnsupportedImage(f"VMDK compression {self.compression} is not known")
        if self.capacity > 1 << 44:
            raise OutOfBounds(f"an extent of {self.capacity} sectors")


def read_header(storage: Storage) -> SparseHeader:
    """Return the header that counts: the footer's if the directory came last."""
    head = storage.pread(0, SECTOR)
    if head[:4] == COWD:
        header = SparseHeader.parse_cowd(head)
    else:
        header = SparseHeader.parse(head)
        if header.directory == DIRECTORY_AT_END:
            end = storage.size() // SECTOR * SECTOR
            header = SparseHeader.parse(read_exactly(storage, end - 1024, SECTOR, "the footer"))
    header.check()
    return header


class SparseExtent:
    """One sparse file: where each grain of its guest bytes lies."""

    def __init__(self, storage: Storage, budget: Budget, *, writable: bool) -> None:
        self.storage = storage
        self.writable = writable
        self.header = read_header(storage)
        self.length = self.header.capacity * SECTOR
        self.grain = self.header.grain * SECTOR
        if writable and self.compressed:
            raise UnsupportedImage("compressed VMDK extents are written once, not changed")
        if writable and self.header.version == 3:
            raise UnsupportedImage("VMDK version 3 can only be read")
        self._per_table = self.header.table_entries * self.grain
        self._directory = self._read_directory(self.header.directory, budget)
        spare = self.header.spare_directory if self.header.flags & FLAG_SPARE else 0
        self._spare = self._read_directory(spare, budget) if spare and writable else []
        self._tables: dict[int, list[int]] = {}
        self._dirty: set[int] = set()
        self._next = -(-storage.size() // SECTOR) * SECTOR

    @property
    def compressed(self) -> bool:
        return bool(self.header.flags & FLAG_COMPRESSED)

    def _read_directory(self, sector: int, budget: Budget) -> list[int]:
        count = -(-self.length // self._per_table)
        raw = read_metadata(self.storage, sector * SECTOR, 4 * count, "the grain directory", budget)
        return list(struct.unpack(f"<{count}I", raw))

    def _table(self, number: int) -> list[int]:
        table = self._tables.get(number)
        if table is None:
            if len(self._tables) >= _CACHED_TABLES and not self._dirty:
                self._tables.clear()
            count = self.header.table_entries
            place = self._directory[number] * SECTOR
            if not place:
                table = [0] * count
            else:
                raw = read_exactly(self.storage, place, 4 * count, "a grain table")
                table = list(struct.unpack(f"<{count}I", raw))
            self._tables[number] = table
        return table

    def _entry(self, offset: int) -> int:
        number, inside = divmod(offset // self.grain, self.header.table_entries)
        return self._table(number)[inside]

    def run(self, offset: int, limit: int) -> Extent:
        """Return the run at ``offset`` of the extent."""
        inside = offset % self.grain
        length = min(limit, self.grain - inside)
        if (
            not self._directory[offset // self._per_table]
            and offset // self._per_table not in self._tables
        ):
            rest = self._per_table - offset % self._per_table
            return Extent(offset, min(limit, rest), ExtentKind.HOLE)
        sector = self._entry(offset)
        if sector == 0:
            return Extent(offset, length, ExtentKind.HOLE)
        if sector == 1 and self.header.flags & FLAG_ZERO:
            return Extent(offset, length, ExtentKind.ZERO)
        if self.compressed:
            return Extent(offset, length, ExtentKind.DATA, compressed=True)
        place = sector * SECTOR + inside
        if place >= self.storage.size():
            raise CorruptImage("a grain lies beyond the end of the file", offset=place)
        return Extent(offset, length, ExtentKind.DATA, storage=self.storage, storage_offset=place)

    def read_packed(self, offset: int, length: int) -> bytes:
        """Return guest bytes out of compressed grains."""
        parts = []
        while length:
            inside = offset % self.grain
            part = self._unpacked(offset)[inside : inside + length]
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def _unpacked(self, offset: int) -> bytes:
        place = self._entry(offset) * SECTOR
        if self.header.flags & FLAG_MARKERS:
            marker = read_exactly(self.storage, place, 12, "a grain marker")
            sector, size = struct.unpack("<QI", marker)
            if sector != offset // self.grain * self.header.grain:
                raise CorruptImage("a grain is marked as another one", offset=place)
            place += 12
        else:
            size = int.from_bytes(read_exactly(self.storage, place, 4, "a grain"), "little")
            place += 4
        if not size or size > 2 * self.grain + 4096:
            raise CorruptImage(f"a compressed grain of {size} bytes", offset=place)
        packed = read_exactly(self.storage, place, size, "a compressed grain")
        # The disk's last grain may be stored as short as the disk is.
        last = min(self.grain, self.length - offset // self.grain * self.grain)
        return inflate_grain(packed, last, self.grain)

    def store(self, offset: int, content: bytes) -> None:
        """Write a whole grain; its place is published by ``publish``."""
        place = self._next
        self.storage.pwrite(place, content)
        self._next = place + len(content)
        self._set(offset, place // SECTOR)

    def zero(self, offset: int) -> bool:
        """Mark a grain as zeros; False if it has a place or the extent has no such mark."""
        if self._entry(offset) > 1 or not self.header.flags & FLAG_ZERO:
            return False
        self._set(offset, 1)
        return True

    def _set(self, offset: int, value: int) -> None:
        if value >= 1 << 32:
            raise OutOfBounds("a sparse extent cannot grow beyond 2 TiB")
        number, inside = divmod(offset // self.grain, self.header.table_entries)
        self._table(number)[inside] = value
        self._dirty.add(number)

    def publish(self) -> None:
        """Write the changed grain tables; the grains are durable by now."""
        for number in sorted(self._dirty):
            table = self._tables[number]
            raw = struct.pack(f"<{len(table)}I", *table)
            if not self._directory[number]:
                self._new_table(number, raw)
                continue
            self.storage.pwrite(self._directory[number] * SECTOR, raw)
            if self._spare and self._spare[number]:
                self.storage.pwrite(self._spare[number] * SECTOR, raw)
        self._dirty.clear()

    def _new_table(self, number: int, raw: bytes) -> None:
        for directory, start in self._directories():
            place = self._next
            self.storage.pwrite(place, raw)
            self._next = -(-(place + len(raw)) // SECTOR) * SECTOR
            self.storage.flush()
            directory[number] = place // SECTOR
            entry = struct.pack("<I", directory[number])
            self.storage.pwrite(start * SECTOR + 4 * number, entry)

    def _directories(self) -> list[tuple[list[int], int]]:
        both = [(self._directory, self.header.directory)]
        if self._spare:
            both.append((self._spare, self.header.spare_directory))
        return both


def inflate_grain(packed: bytes, least: int, grain: int) -> bytes:
    """Return a grain of ``least`` to ``grain`` bytes, filled up with zeros."""
    import zlib

    try:
        content = zlib.decompressobj().decompress(packed, grain)
    except zlib.error as error:
        raise CorruptImage(f"a compressed grain is broken: {error}") from error
    if len(content) < least:
        raise CorruptImage(f"a compressed grain holds only {len(content)} bytes")
    return content.ljust(grain, b"\0")
