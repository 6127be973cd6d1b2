"""bochs: the growing disks of the Bochs emulator.

Specification: "Disk Image Modes" in the Bochs user manual, and its ``hdimage.h``.
Little-endian.

::

    0   "Bochs Virtual HD Image"   32 "Redolog"   48 "Growing" (or Undoable, Volatile)
    64  version 0x00020000 (0x00010000 with the disk size at 84)
    68  header size   72 catalog entries   76 bitmap bytes   80 extent bytes
    84  time (version 2 only)   88 disk size
    catalog: u32 of each extent: its number, all ones: not allocated
    extents: each a bitmap of its sectors (lowest bit first; whole sectors long), its data

A sector whose bit is 0 reads as zeros, in Undoable and Volatile as the base disk, which the
file does not name; those modes are refused.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from wirt.errors import CorruptImage, NotThisFormat, OutOfBounds, UnsupportedImage
from wirt.image.base import Extent, ExtentKind, Format, Image, ImageInfo, OpenOptions, Storage
from wirt.image.formats.mapped import (
    SECTOR,
    BlockImage,
    read_exactly,
    read_metadata,
    refuse_unknown,
    run_of_bits,
    stored_size,
)

_MAGIC = b"Bochs Virtual HD Image"
_HEADER = struct.Struct("<32s16s16sIIIII")
_NOT_ALLOCATED = 0xFFFFFFFF


class BochsImage(BlockImage):
    format_name = "bochs"

    def __init__(self, storage: Storage, options: OpenOptions) -> None:
        super().__init__()
        self.storage = storage
        self.writable = options.writable
        head = storage.pread(0, SECTOR)
        if len(head) < SECTOR or head[:22] != _MAGIC:
            raise NotThisFormat("there is no Bochs signature")
        _, kind, mode, version, size, entries, bitmap, extent = _HEADER.unpack_from(head)
        if kind.rstrip(b"\0") != b"Redolog" or mode.rstrip(b"\0") != b"Growing":
            raise UnsupportedImage(f"Bochs disks of mode {mode[:8]!r} are not supported")
        if version not in {0x10000, 0x20000}:
            raise UnsupportedImage(f"Bochs version {version:#x} is not known")
        disk = int.from_bytes(head[88:96] if version == 0x20000 else head[84:92], "little")
        if extent < SECTOR or extent & (extent - 1) or extent > 1 << 30 or not bitmap:
            raise CorruptImage(f"extents of {extent} bytes with bitmaps of {bitmap}")
        if bitmap > 1 << 20 or bitmap * 8 < extent // SECTOR:
            raise CorruptImage(f"a bitmap of {bitmap} bytes for extents of {extent}")
        self.virtual_size = disk // SECTOR * SECTOR
        self.block_size: int = extent
        self._bitmap_used = bitmap
        self._bitmap_size: int = -(-bitmap // SECTOR) * SECTOR
        if entries * extent < self.virtual_size:
            raise CorruptImage(f"{entries} extents do not hold {disk} bytes")
        raw = read_metadata(storage, size, 4 * entries, "the catalog", options.budget)
        self._catalog_offset = size
        self._catalog = list(struct.unpack(f"<{entries}I", raw))
        self._data: int = size + 4 * entries
        numbers = [number for number in self._catalog if number != _NOT_ALLOCATED]
        self._count = max(numbers, default=-1) + 1
        if self.writable and self._place_of(self._count) > storage.size() + self.block_size:
            raise CorruptImage("extents lie beyond the end of the file")
        self._bits: dict[int, str] = {}

    def _place_of(self, number: int) -> int:
        return self._data + number * (self._bitmap_size + self.block_size)

    def _run(self, offset: int, limit: int) -> Extent:
        index, inside = divmod(offset, self.block_size)
        length = min(limit, self.block_size - inside)
        number = self._catalog[index]
        if number == _NOT_ALLOCATED:
            return Extent(offset, length, ExtentKind.HOLE)
        bits = self._bitmap(index, number)
        sector = inside // SECTOR
        length = min(length, run_of_bits(bits, sector) * SECTOR - inside)
        if bits[sector] == "0":
            return Extent(offset, length, ExtentKind.HOLE)
        place = self._place_of(number) + self._bitmap_size + inside
        return Extent(offset, length, ExtentKind.DATA, storage=self.storage, storage_offset=place)

    def _bitmap(self, index: int, number: int) -> str:
        bits = self._bits.get(index)
        if bits is None:
            if len(self._bits) >= 64:
                self._bits.clear()
            at = self._place_of(number)
            raw = read_exactly(self.storage, at, self._bitmap_used, "a sector bitmap")
            text = format(int.from_bytes(raw, "little"), f"0{8 * len(raw)}b")
            bits = text[::-1][: self.block_size // SECTOR]
            self._bits[index] = bits
        return bits

    def _store(self, index: int, content: bytes) -> None:
        number = self._catalog[index]
        if number == _NOT_ALLOCATED:
            number = self._count
            self._count += 1
        place = self._place_of(number)
        self.storage.pwrite(place + self._bitmap_size, content)
        full = b"\xff" * max(1, self.block_size // SECTOR // 8)
        self.storage.pwrite(place, full.ljust(self._bitmap_size, b"\0"))
        self._catalog[index] = number
        self._bits.pop(index, None)

    def _publish(self, indexes: list[int]) -> None:
        for index in indexes:
            entry = struct.pack("<I", self._catalog[index])
            self.storage.pwrite(self._catalog_offset + 4 * index, entry)

    def info(self) -> ImageInfo:
        size = stored_size(self.storage)
        return ImageInfo("bochs", self.virtual_size, size, self.block_size)


class BochsFormat(Format):
    name = "bochs"
    suffixes = (".bochs",)
    images = (BochsImage,)

    def probe(self, storage: Storage) -> bool:
        return storage.pread(0, 22) == _MAGIC

    def open(self, storage: Storage, options: OpenOptions) -> Image:
        return BochsImage(storage, options)

    def create(self, storage: Storage, size: int, options: Mapping[str, str]) -> None:
        refuse_unknown(options)
        size = -(-size // SECTOR) * SECTOR
        # Bochs makes both grow in turn until the disk fits.
        entries, bitmap = 512, 1
        while entries * bitmap * 8 * SECTOR < size:
            entries, bitmap = (
                (entries, bitmap * 2) if bitmap * 64 <= entries else (entries * 2, bitmap)
            )
        if entries > 1 << 24:
            raise OutOfBounds("a Bochs disk cannot be as large as this")
        head = _HEADER.pack(
            _MAGIC, b"Redolog", b"Growing", 0x20000, SECTOR, entries, bitmap, bitmap * 8 * SECTOR
        )
        head += struct.pack("<IQ", 0, size)
        storage.pwrite(0, head.ljust(SECTOR, b"\0") + b"\xff" * (4 * entries))


FORMAT = BochsFormat()
