"""parallels: expanding disks of Parallels Desktop and Virtuozzo, one file.

Specification: ``docs/interop/parallels.txt`` of QEMU. Little-endian.

::

    0  "WithoutFreeSpace" (BAT counts sectors) or "WithouFreSpacExt" (BAT counts clusters)
    16 version 2  20 heads  24 cylinders  28 sectors of a cluster  32 BAT entries
    36 disk size in sectors (u64; only 32 bits in the first kind)
    44 in use (0x746F6E59)  48 first sector of the data  52 flags  56 extension
    64 BAT: u32 of each cluster, 0: not allocated

Such files are also the parts of a directory, see ``parallels_bundle.py``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from wirt.errors import CorruptImage, NotThisFormat, OutOfBounds, UnsupportedImage, UsageError
from wirt.image.base import Extent, ExtentKind, Format, Image, ImageInfo, OpenOptions, Storage
from wirt.image.formats.mapped import (
    CHECK_HINT,
    SECTOR,
    read_metadata,
    refuse_unknown,
    stored_size,
)
from wirt.image.formats.parallels_bundle import DESCRIPTOR, BundleImage, is_bundle
from wirt.image.formats.table_check import Use
from wirt.image.formats.table_image import ResizableTable
from wirt.units import parse_size

_HEADER = struct.Struct("<16sIIIIIQIIIQ")
_OLD, _NEW = b"WithoutFreeSpace", b"WithouFreSpacExt"
_IN_USE = 0x746F6E59
_LARGEST_CLUSTER = 1 << 21
_MOST_ENTRIES = 1 << 28


class ParallelsImage(ResizableTable):
    format_name = "parallels"

    def __init__(self, storage: Storage, options: OpenOptions) -> None:
        super().__init__(storage, options)
        head = storage.pread(0, _HEADER.size)
        if len(head) < _HEADER.size or head[:16] not in {_OLD, _NEW}:
            raise NotThisFormat("there is no Parallels signature")
        magic, version, _, _, cluster, entries, sectors, used, data, _, extension = _HEADER.unpack(
            head
        )
        if version != 2:
            raise UnsupportedImage(f"Parallels version {version} is not known")
        if not 0 < cluster <= _LARGEST_CLUSTER:
            raise CorruptImage(f"clusters cannot be {cluster} sectors long")
        sectors = sectors & 0xFFFFFFFF if magic == _OLD else sectors
        self._unit = SECTOR if magic == _OLD else cluster * SECTOR
        self.block_size = cluster * SECTOR
        self.virtual_size = sectors * SECTOR
        self.dirty = used == _IN_USE
        if self.writable and self.dirty and not options.allow_dirty:
            raise CorruptImage(
                "the image was not closed and needs a check before it is written", hint=CHECK_HINT
            )
        if self.writable and extension:
            raise UnsupportedImage("a Parallels disk with an extension can only be read")
        if entries * self.block_size < self.virtual_size:
            raise CorruptImage(f"{entries} clusters do not hold {sectors} sectors")
        raw = read_metadata(storage, 64, 4 * entries, "the block table", options.budget)
        self._table = list(struct.unpack(f"<{entries}I", raw))
        self._size_in_header, self._entries_in_header = self.virtual_size, entries
        self._old = magic == _OLD
        self._align = self._unit
        self._data = data * SECTOR or -(-(64 + 4 * entries) // SECTOR) * SECTOR
        self._open_mark = False
        self._find_room(allow_dirty=options.allow_dirty)

    def _find_room(self, *, allow_dirty: bool) -> None:
        size = self.storage.size()
        places = [number * self._unit for number in self._table if number]
        inside = max((place for place in places if place < size), default=0)
        if self.writable and max(places, default=0) > inside and not allow_dirty:
            raise CorruptImage("clusters lie beyond the end of the file", hint=CHECK_HINT)
        self._next = max(self._data, inside + self.block_size if inside else 0)

    def _run(self, offset: int, limit: int) -> Extent:
        index, inside = divmod(offset, self.block_size)
        length = min(limit, self.block_size - inside)
        if not self._table[index]:
            return Extent(offset, length, ExtentKind.HOLE)
        place = self._table[index] * self._unit + inside
        if place >= self.storage.size():
            raise CorruptImage(f"cluster {index} lies beyond the end of the file", offset=place)
        return Extent(offset, length, ExtentKind.DATA, storage=self.storage, storage_offset=place)

    def _before_write(self) -> None:
        super()._before_write()
        if not self._open_mark:
            self._open_mark = True
            self.storage.pwrite(44, struct.pack("<I", _IN_USE))
            self.storage.flush()

    def _place_of(self, index: int) -> int | None:
        return self._table[index] * self._unit or None

    def _point(self, index: int, place: int) -> None:
        if place // self._unit >= 1 << 32:
            raise OutOfBounds("the file cannot grow further")
        self._table[index] = place // self._unit

    def _forget(self, index: int) -> None:
        self._table[index] = 0

    def _metadata(self) -> Iterator[Use]:
        yield Use(0, self._data, "the header and the block table")

    def _own_faults(self) -> list[str]:
        return ["the image was not closed"] if self.dirty else []

    def _repair(self, *, everything: bool) -> None:
        super()._repair(everything=everything)
        self.dirty = self.dirty and not everything

    def _refuse_size(self, size: int) -> None:
        if -(-size // self.block_size) > _MOST_ENTRIES or (self._old and size >> 9 >= 1 << 32):
            raise OutOfBounds("a Parallels disk cannot be as large as this")

    def _extend(self, blocks: int) -> None:
        """Make room for a longer table: the clusters that lie there move to the end."""
        before = len(self._table)
        self._table += [0] * (blocks - before)
        end = 64 + 4 * blocks
        if end <= self._data:
            return
        data = -(-end // self.block_size) * self.block_size
        self._next = max(self._next, data)
        moved = [i for i in range(before) if 0 < self._table[i] * self._unit < data]
        for index in moved:
            content = self.pread(index * self.block_size, self._block_length(index))
            self._store(index, content.ljust(self.block_size, b"\0"))
        self.storage.flush()
        self._publish(moved)
        self.storage.flush()
        self._data = data

    def _switch(self, size: int) -> None:
        """Write the table, then what lies in the first sector: sizes and start of the data."""
        if size > self._size_in_header:
            place = 64 + 4 * self._entries_in_header
            new = self._table[self._entries_in_header :]
            self.storage.pwrite(place, struct.pack(f"<{len(new)}I", *new))
            self.storage.flush()
        head = bytearray(self.storage.pread(0, 64))
        struct.pack_into("<I", head, 32, len(self._table))
        struct.pack_into("<I" if self._old else "<Q", head, 36, size // SECTOR)
        struct.pack_into("<I", head, 48, self._data // SECTOR)
        self.storage.pwrite(0, head)
        self.storage.flush()
        self._size_in_header, self._entries_in_header = size, len(self._table)

    def _cut(self, blocks: int) -> None:
        del self._table[blocks:]
        self._switch(self.virtual_size)

    def _publish(self, indexes: list[int]) -> None:
        for index in indexes:
            self.storage.pwrite(64 + 4 * index, struct.pack("<I", self._table[index]))

    def close(self) -> None:
        if self._open_mark:
            self.flush()
            self.storage.pwrite(44, bytes(4))
            self.storage.flush()
            self._open_mark = False
        super().close()

    def info(self) -> ImageInfo:
        size = stored_size(self.storage)
        return ImageInfo("parallels", self.virtual_size, size, self.block_size, dirty=self.dirty)


class ParallelsFormat(Format):
    name = "parallels"
    suffixes = (".hds", ".parallels")
    images = (ParallelsImage, BundleImage)
    bundle_file = DESCRIPTOR

    def probe(self, storage: Storage) -> bool:
        return storage.pread(0, 16) in {_OLD, _NEW} or is_bundle(storage)

    def open(self, storage: Storage, options: OpenOptions) -> Image:
        if is_bundle(storage):
            return BundleImage(storage, options, ParallelsImage)
        return ParallelsImage(storage, options)

    def create(self, storage: Storage, size: int, options: Mapping[str, str]) -> None:
        """Options: ``cluster_size`` (1 MiB)."""
        refuse_unknown(options, "cluster_size")
        cluster = _cluster_sectors(options.get("cluster_size", "1M"))
        sectors = -(-size // SECTOR)
        entries = -(-sectors // cluster)
        if entries > _MOST_ENTRIES:
            raise OutOfBounds("a Parallels disk cannot be as large as this")
        data = -(-(64 + 4 * entries) // (cluster * SECTOR)) * cluster
        head = _HEADER.pack(
            _NEW, 2, 16, min(sectors // 512, 0xFFFFFFFF), cluster, entries, sectors, 0, data, 0, 0
        )
        storage.truncate(data * SECTOR)
        storage.pwrite(0, head)


def _cluster_sectors(text: str) -> int:
    sectors, rest = divmod(parse_size(text), SECTOR)
    if rest or not 0 < sectors <= _LARGEST_CLUSTER:
        raise UsageError("Cluster size must be a multiple of 512 bytes, up to 1G")
    return sectors


FORMAT = ParallelsFormat()
