"""Sparse extents: KDMV (hosted, also compressed) and COWD (vmfsSparse).

A table names a grain only when the grain is durable, a directory a table likewise.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec
from msgspec.structs import replace

from wirt.errors import CorruptImage, NotThisFormat, OutOfBounds, UnsupportedImage
from wirt.image.base import Budget, Extent, ExtentKind, Storage
from wirt.image.formats.mapped import SECTOR, lay, read_exactly, read_metadata
from wirt.image.formats.table_check import Use

KDMV, COWD = b"KDMV", b"COWD"
FLAG_NEWLINE, FLAG_SPARE, FLAG_ZERO, FLAG_COMPRESSED, FLAG_MARKERS = 1, 2, 4, 1 << 16, 1 << 17
DIRECTORY_AT_END = 0xFFFFFFFFFFFFFFFF
_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
_COWD = struct.Struct("<6I")
COWD_TABLE = 4096
_CACHED_TABLES = 256


class SparseHeader(msgspec.Struct, frozen=True):
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
        _, _, sectors, grain, directory, _ = _COWD.unpack_from(data, 4)
        return cls(0, sectors, grain, 0, 0, COWD_TABLE, 0, directory, 0)

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
            if is_unfinished(storage, header):
                raise CorruptImage("the stream was not written to its end")
            header = SparseHeader.parse(read_exactly(storage, end - 1024, SECTOR, "the footer"))
    header.check()
    return header


def is_unfinished(storage: Storage, header: SparseHeader) -> bool:
    """Return whether nothing follows the header of a stream: it was made to be written."""
    at_end = header.directory == DIRECTORY_AT_END
    return at_end and storage.size() == header.overhead * SECTOR


class SparseExtent:
    """One sparse file: where each grain of its guest bytes lies."""

    def __init__(self, storage: Storage, budget: Budget, *, writable: bool) -> None:
        self.storage = storage
        self.writable = writable
        self.header = read_header(storage)
        self.length = self.header.capacity * SECTOR
        self.grain = self.header.grain * SECTOR
        self._is_cowd = storage.pread(0, 4) == COWD
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

    def place_of(self, offset: int) -> int | None:
        """Return where the grain lies, None without a place."""
        sector = self._entry(offset)
        marked = sector == 1 and self.header.flags & FLAG_ZERO
        return None if not sector or marked else sector * SECTOR

    def is_set(self, offset: int) -> bool:
        return self._entry(offset) != 0

    def new_place(self, offset: int) -> int:
        """Give the grain a place at the end of the file; ``publish`` makes it known."""
        place = self._next
        self._next = place + self.grain
        self._set(offset, place // SECTOR)
        if self.storage.size() < self._next:
            self.storage.truncate(self._next)
        return place

    def store(self, offset: int, content: bytes) -> None:
        """Write a whole grain; its place is published by ``publish``."""
        place = self._next
        lay(self.storage, place, content)
        self._next = place + len(content)
        self._set(offset, place // SECTOR)

    def forget(self, offset: int) -> None:
        self._set(offset, 0)

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
        if self._is_cowd and self._dirty:
            self._write_free_sector()
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

    def _write_free_sector(self) -> None:
        """COWD says where its next grain will lie: behind tables that are yet to be written."""
        new = sum(not self._directory[number] for number in self._dirty)
        free = self._next + 4 * self.header.table_entries * new
        self.storage.pwrite(28, struct.pack("<I", min(free // SECTOR, 0xFFFFFFFF)))
        self.storage.flush()

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

    # Resizing

    def extended(self, capacity: int) -> SparseHeader:
        """Make room for ``capacity`` sectors; return the header that shows it when written."""
        header = replace(self.header, capacity=capacity)
        old, count = len(self._directory), -(-capacity * SECTOR // self._per_table)
        self._clear_behind(self.length)
        self.length = capacity * SECTOR
        if count == old:
            return header
        self._directory = self._longer(self._directory, count)
        self._spare = self._longer(self._spare, count) if self._spare else []
        if -(-4 * old // SECTOR) == -(-4 * count // SECTOR):
            for directory, start in self._directories():
                self._write_directory(directory, start)
            return header
        header = replace(header, directory=self._moved(self._directory))
        return replace(header, spare_directory=self._moved(self._spare)) if self._spare else header

    def shorten(self) -> None:
        """Give up what lies behind the end; the header says so already."""
        count = -(-self.length // self._per_table)
        del self._directory[count:]
        del self._spare[count:]
        for number in [number for number in self._tables if number >= count]:
            del self._tables[number]
            self._dirty.discard(number)
        self._clear_behind(self.length)
        self.publish()
        self.storage.flush()

    def _clear_behind(self, end: int) -> None:
        """A longer disk that was cut may have left grains in the last table."""
        first = -(-end // self.grain) * self.grain
        for offset in range(first, len(self._directory) * self._per_table, self.grain):
            if self._entry(offset):
                self._set(offset, 0)

    def _longer(self, directory: list[int], count: int) -> list[int]:
        """Return the directory with places for new, empty tables (COWD makes them when used)."""
        if self._is_cowd:
            return directory + [0] * (count - len(directory))
        size = -(-4 * self.header.table_entries // SECTOR) * SECTOR
        new = []
        for _ in range(len(directory), count):
            self.storage.pwrite(self._next, bytes(size))
            new.append(self._next // SECTOR)
            self._next += size
        return directory + new

    def _moved(self, directory: list[int]) -> int:
        """Write the directory to a new place; return its sector."""
        sector = self._next // SECTOR
        self._write_directory(directory, sector)
        self._next += -(-4 * len(directory) // SECTOR) * SECTOR
        return sector

    def _write_directory(self, directory: list[int], sector: int) -> None:
        raw = struct.pack(f"<{len(directory)}I", *directory)
        self.storage.pwrite(sector * SECTOR, raw.ljust(-(-len(raw) // SECTOR) * SECTOR, b"\0"))

    def write_header(self, header: SparseHeader) -> None:
        """Write the header, which lies in one sector, when all that it names is durable."""
        self.storage.flush()
        if self._is_cowd:
            head = bytearray(self.storage.pread(0, SECTOR))
            struct.pack_into("<I", head, 12, header.capacity)
            struct.pack_into("<II", head, 20, header.directory, len(self._directory))
            self.storage.pwrite(0, head)
        else:
            self.storage.pwrite(0, header.pack())
        self.storage.flush()
        self.header, self.length = header, header.capacity * SECTOR

    def write_behind(self, content: bytes) -> int:
        """Write metadata behind everything; return the sector. ``trim`` may cut it off."""
        place = self._next
        self.storage.pwrite(place, content)
        return place // SECTOR

    # Checking

    def used_offsets(self) -> Iterator[int]:
        """Yield the offsets of the grains whose entries say anything.

        A table that lies beyond the file, or that was seen before, names nothing more.
        """
        seen: set[int] = set()
        size, limit = 4 * self.header.table_entries, self.storage.size()
        for number, sector in enumerate(self._directory):
            inside = sector and sector not in seen and sector * SECTOR + size <= limit
            if not inside and number not in self._tables:
                continue
            seen.add(sector)
            first = number * self._per_table
            end = min(first + self._per_table, self.length)
            for offset in range(first, end, self.grain):
                if self._entry(offset):
                    yield offset

    def forget_table(self, number: int) -> None:
        self._directory[number] = 0
        self._tables.pop(number, None)
        self.storage.pwrite(self.header.directory * SECTOR + 4 * number, bytes(4))

    def uses(self, first_block: int) -> Iterator[Use]:
        """Yield everything in the file; a table's number is -2 less its own."""
        header = self.header
        yield Use(0, 4 * SECTOR if self._is_cowd else SECTOR, "the header")
        if header.descriptor:
            length = header.descriptor_sectors * SECTOR
            yield Use(header.descriptor * SECTOR, length, "the descriptor")
        size = 4 * header.table_entries
        for directory, start in self._directories():
            yield Use(start * SECTOR, 4 * len(directory), "a grain directory")
            for number, sector in enumerate(directory):
                if sector:
                    yield Use(sector * SECTOR, size, f"grain table {number}", -2 - number)
        for offset in self.used_offsets():
            place = self.place_of(offset)
            if place is not None:
                index = first_block + offset // self.grain
                length = SECTOR if self.compressed else self.grain
                yield Use(place, length, f"grain {index}", index)

    def trim(self) -> None:
        """Cut off what lies behind everything in use, but not of what the header counts in."""
        end = max(*(use.end for use in self.uses(0)), self.header.overhead * SECTOR)
        self._next = -(-end // SECTOR) * SECTOR
        if self._next < self.storage.size():
            self.storage.truncate(self._next)
            self.storage.flush()


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
