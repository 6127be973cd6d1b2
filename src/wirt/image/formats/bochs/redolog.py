"""A redolog: the growing disks of Bochs, and what undoable and volatile disks write."""

from __future__ import annotations

import calendar
import os
import struct
import time

from msgspec.structs import replace

from wirt.errors import CorruptImage, NotThisFormat, OutOfBounds, UnsupportedImage
from wirt.image.base import Extent, ExtentKind, ImageInfo, OpenOptions, Overlay, Storage
from wirt.image.formats.mapped import (
    SECTOR,
    BlockImage,
    read_exactly,
    read_metadata,
    run_of_bits,
    stored_size,
)

MODES = ("Growing", "Undoable", "Volatile")
SIGNATURE = b"Bochs Virtual HD Image"
HEADER = struct.Struct("<32s16s16sIIIII")
_NOT_ALLOCATED = 0xFFFFFFFF
REDOLOG = ".redolog"


class RedologImage(BlockImage):
    format_name = "bochs"

    def __init__(self, storage: Storage, options: OpenOptions) -> None:
        super().__init__()
        self.storage = storage
        self.writable = options.writable
        head = storage.pread(0, SECTOR)
        if len(head) < SECTOR or head[:22] != SIGNATURE:
            raise NotThisFormat("there is no Bochs signature")
        _, kind, mode, version, size, entries, bitmap, extent = HEADER.unpack_from(head)
        self.mode = mode.rstrip(b"\0").decode("ascii", "replace")
        if kind.rstrip(b"\0") != b"Redolog" or self.mode not in MODES:
            raise UnsupportedImage(f"Bochs disks of mode {self.mode!r} are not known")
        if version not in {0x10000, 0x20000}:
            raise UnsupportedImage(f"Bochs version {version:#x} is not known")
        disk = int.from_bytes(head[88:96] if version == 0x20000 else head[84:92], "little")
        self.time = int.from_bytes(head[84:88], "little") if version == 0x20000 else 0
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
        is_new = number == _NOT_ALLOCATED
        if is_new:
            number = self._count
            self._count += 1
        place = self._place_of(number)
        self.storage.pwrite(place + self._bitmap_size, content)
        if not is_new:
            # Until its bits are set, a sector shows the base disk; they must not come first.
            self.storage.flush()
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
        specific = {"mode": self.mode.lower()}
        return ImageInfo("bochs", self.virtual_size, size, self.block_size, specific=specific)


class UndoableImage(RedologImage, Overlay):
    """What was written over a base disk. The base has the redolog's name without its end."""

    base_format = ""
    """Of the base disk, once that was looked at."""

    @property
    def base_name(self) -> str:
        """The file beside this one: ``disk.redolog`` or, volatile, ``disk.`` and six letters."""
        name = os.path.basename(self.storage.name)
        if self.mode == "Volatile":
            return name[:-7] if name[-7:-6] == "." else ""
        return name.removesuffix(REDOLOG) if name.endswith(REDOLOG) else ""

    def set_backing(self, name: str | None, backing_format: str | None) -> None:
        raise UnsupportedImage(
            "a redolog does not name its base disk: that is the file of its name without the end",
            hint="rename the files, or convert: wirt img convert",
        )

    def make_empty(self) -> None:
        self._before_write()
        self._catalog = [_NOT_ALLOCATED] * len(self._catalog)
        self._unpublished.clear()
        self._bits.clear()
        self._count = 0
        self.storage.pwrite(self._catalog_offset, b"\xff" * (4 * len(self._catalog)))
        if self.backing is not None and self.time:
            # What was committed has changed the base disk: it is still the right one.
            self.time = file_time(self.backing.storage)
            self.storage.pwrite(84, struct.pack("<I", self.time))
        self.storage.flush()
        self.storage.truncate(self._data)

    def info(self) -> ImageInfo:
        return replace(super().info(), backing_name=self.base_name, backing_format=self.base_format)


def file_time(storage: Storage) -> int:
    """Return when a file was changed, as FAT counts it, in local time; 0 if that is not known."""
    fd = storage.fileno()
    if fd is None:
        return 0
    t = time.localtime(os.fstat(fd).st_mtime)
    date = max(0, t.tm_year - 1980) << 9 | t.tm_mon << 5 | t.tm_mday
    return date << 16 | t.tm_hour << 11 | t.tm_min << 5 | t.tm_sec // 2


def same_time(one: int, other: int) -> bool:
    """Compare two times of FAT; hosts in different time zones may have made them."""
    apart = abs(_seconds(one) - _seconds(other))
    return apart <= 26 * 3600 and apart % 900 in {0, 1, 2, 898, 899}


def _seconds(value: int) -> int:
    date, clock = value >> 16, value & 0xFFFF
    fields = (1980 + (date >> 9), date >> 5 & 15, date & 31, clock >> 11, clock >> 5 & 63)
    return calendar.timegm((*fields, (clock & 31) * 2, 0, 0, 0))


def create_redolog(storage: Storage, size: int, mode: str, changed: int) -> None:
    """Write an empty redolog; ``changed`` is the base disk's time."""
    size = -(-size // SECTOR) * SECTOR
    # Bochs makes both grow in turn until the disk fits.
    entries, bitmap = 512, 1
    while entries * bitmap * 8 * SECTOR < size:
        entries, bitmap = (entries, bitmap * 2) if bitmap * 64 <= entries else (entries * 2, bitmap)
    if entries > 1 << 24:
        raise OutOfBounds("a Bochs disk cannot be as large as this")
    head = HEADER.pack(
        SIGNATURE, b"Redolog", mode.encode(), 0x20000, SECTOR, entries, bitmap, bitmap * 8 * SECTOR
    )
    head += struct.pack("<IQ", changed, size)
    storage.pwrite(0, head.ljust(SECTOR, b"\0") + b"\xff" * (4 * entries))
