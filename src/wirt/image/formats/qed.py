"""qed: QEMU's enhanced disk, an experiment between qcow2's two versions.

Specification: ``docs/interop/qed_spec`` of QEMU. Little-endian.

::

    0  "QED" and a zero byte   4 cluster size  8 clusters of a table  12 clusters of the header
    16 features (1 backing file, 2 needs check, 4 backing is raw)  24 compatible  32 autoclear
    40 L1 table  48 disk size  56 offset and length (u32) of the backing file's name
    tables of u64: 0 not allocated, 1 zeros (L2 only), else the file offset
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping

import msgspec
from msgspec.structs import replace

from wirt.errors import (
    CorruptImage,
    ImageAccessDenied,
    NotThisFormat,
    OutOfBounds,
    UnsupportedImage,
    UsageError,
)
from wirt.image.base import Extent, ExtentKind, Format, Image, ImageInfo, OpenOptions, Storage
from wirt.image.formats.mapped import (
    CHECK_HINT,
    SECTOR,
    read_exactly,
    refuse_unknown,
    stored_size,
)
from wirt.image.formats.table_check import Use
from wirt.image.formats.table_image import ResizableTable
from wirt.image.formats.two_level import TwoLevelImage
from wirt.units import parse_size

_HEADER = struct.Struct("<4sIIIQQQQQII")
_BACKING, _NEED_CHECK, _RAW_BACKING = 1, 2, 4
_CLUSTERS = (4096, 64 << 20)
_TABLES = (1, 2, 4, 8, 16)
_LONGEST_NAME = 1023


class Header(msgspec.Struct, frozen=True):
    cluster: int
    table: int
    features: int
    l1: int
    size: int
    backing: tuple[int, int] = (0, 0)
    compatible: int = 0

    @classmethod
    def parse(cls, data: bytes) -> Header:
        if len(data) < _HEADER.size or data[:4] != b"QED\0":
            raise NotThisFormat("there is no QED signature")
        _, cluster, table, _, features, compatible, _, l1, size, at, length = _HEADER.unpack_from(
            data
        )
        if features & ~7:
            raise UnsupportedImage(f"unknown QED features {features & ~7:#x}")
        if (
            cluster & (cluster - 1)
            or not _CLUSTERS[0] <= cluster <= _CLUSTERS[1]
            or table not in _TABLES
        ):
            raise CorruptImage(f"clusters of {cluster} bytes, tables of {table} clusters")
        entries = table * cluster // 8
        if size % SECTOR or size > entries * entries * cluster or size > 1 << 62:
            raise CorruptImage(f"a disk cannot have {size} bytes here")
        return cls(cluster, table, features, l1, size, (at, length), compatible)

    def pack(self) -> bytes:
        return _HEADER.pack(
            b"QED\0", self.cluster, self.table, 1, self.features, self.compatible, 0, self.l1,
            self.size, *self.backing,
        )  # fmt: skip


class QedImage(TwoLevelImage, ResizableTable):
    format_name = "qed"
    _order = "<"

    def __init__(self, storage: Storage, options: OpenOptions) -> None:
        super().__init__(storage, options)
        self.header = Header.parse(storage.pread(0, _HEADER.size))
        if self.writable and self.header.features & _NEED_CHECK and not options.allow_dirty:
            raise CorruptImage(
                "the image was not closed and needs a check before it is written", hint=CHECK_HINT
            )
        self.virtual_size = self.header.size
        self.block_size = self.header.cluster
        self._l2_entries = self.header.table * self.header.cluster // 8
        # Only the used part of L1 is read: a table may be 128 MiB long.
        entries = -(-self.virtual_size // (self._l2_entries * self.block_size))
        self._load_l1(storage, self.header.l1, entries, options.budget)
        self.backing_name = self._backing_name()

    def _backing_name(self) -> str:
        if not self.header.features & _BACKING:
            return ""
        at, length = self.header.backing
        if length > _LONGEST_NAME:
            raise CorruptImage(f"a backing file's name of {length} bytes")
        return os.fsdecode(read_exactly(self.storage, at, length, "the backing file's name"))

    def _run(self, offset: int, limit: int) -> Extent:
        absent = self._hole_without_table(offset, limit)
        if absent is not None:
            return absent
        index, inside = divmod(offset, self.block_size)
        length = min(limit, self.block_size - inside)
        entry = self._entry(index)
        if entry == 0:
            return Extent(offset, length, ExtentKind.HOLE)
        if entry == 1:
            return Extent(offset, length, ExtentKind.ZERO)
        place = entry + inside
        if entry % self.block_size or place >= self.storage.size():
            raise CorruptImage("a cluster lies outside the file", offset=offset)
        return Extent(offset, length, ExtentKind.DATA, storage=self.storage, storage_offset=place)

    def _place_of(self, index: int) -> int | None:
        entry = self._entry(index)
        return entry if entry > 1 else None

    @property
    def _grid(self) -> int:
        return self.block_size

    def _zero(self, index: int) -> bool:
        if self._entry(index) > 1:
            return False
        self._set(index, 1)
        return True

    def _metadata(self) -> Iterator[Use]:
        yield Use(0, self.block_size, "the header")
        yield Use(self.header.l1, self.header.table * self.block_size, "the L1 table")
        yield from super()._metadata()

    def _mark_clean(self) -> None:
        if self.header.features & _NEED_CHECK:
            self._write_header(replace(self.header, features=self.header.features & ~_NEED_CHECK))

    def _write_header(self, header: Header) -> None:
        """Write the header, which lies in one sector, durably."""
        self.storage.flush()
        self.storage.pwrite(0, header.pack())
        self.storage.flush()
        self.header = header

    def _refuse_size(self, size: int) -> None:
        if size > self._l2_entries**2 * self.block_size:
            raise OutOfBounds(f"a QED disk with these clusters cannot have {size} bytes")

    def _extend(self, blocks: int) -> None:
        """Clear what a longer disk may have left behind in the tables."""
        first = self._block_count
        for index in range(first, min(blocks, len(self._l1) * self._l2_entries)):
            if self._entry(index):
                self._set(index, 0)
        self._l1 += [0] * (-(-blocks // self._l2_entries) - len(self._l1))

    def _switch(self, size: int) -> None:
        if size > self.header.size:
            self._publish([])
            self.storage.pwrite(self._l1_offset, struct.pack(f"<{len(self._l1)}Q", *self._l1))
        self._write_header(replace(self.header, size=size))

    def set_backing(self, name: str | None, backing_format: str | None) -> None:
        self._before_write()
        self.flush()
        features = self.header.features & ~(_BACKING | _RAW_BACKING)
        place, data = (0, 0), os.fsencode(name or "")
        if name is not None:
            place = self._written_name(data)
            features |= _BACKING | (_RAW_BACKING if backing_format == "raw" else 0)
        header = replace(self.header, features=features, backing=place)
        if place[0] == _HEADER.size:
            self.storage.pwrite(0, header.pack() + data)
        self._write_header(header)
        self.backing_name = os.fsdecode(data)

    def _written_name(self, name: bytes) -> tuple[int, int]:
        """Return where the name lies: in the header's sector, or written beside the old one."""
        if len(name) > _LONGEST_NAME:
            raise UsageError("the backing file's name is too long for QED")
        if _HEADER.size + len(name) <= SECTOR:
            return _HEADER.size, len(name)
        place = 2048 if self.header.backing[0] < 2048 else SECTOR
        self.storage.pwrite(place, name)
        return place, len(name)

    def info(self) -> ImageInfo:
        known = "raw" if self.header.features & _RAW_BACKING else ""
        return ImageInfo(
            "qed",
            self.virtual_size,
            stored_size(self.storage),
            self.block_size,
            backing_name=self.backing_name,
            backing_format=known,
            dirty=bool(self.header.features & _NEED_CHECK),
        )


class QedFormat(Format):
    name = "qed"
    suffixes = (".qed",)
    images = (QedImage,)
    has_backing = True

    def probe(self, storage: Storage) -> bool:
        return storage.pread(0, 4) == b"QED\0"

    def open(self, storage: Storage, options: OpenOptions) -> Image:
        image = QedImage(storage, options)
        if image.backing_name and options.with_backing:
            if options.related is None:
                raise ImageAccessDenied("the image needs its backing file")
            raw = image.header.features & _RAW_BACKING
            image.backing = options.related.image([image.backing_name], format="raw" if raw else "")
        return image

    def create(self, storage: Storage, size: int, options: Mapping[str, str]) -> None:
        """Options: ``backing_file``, ``backing_fmt``, ``cluster_size`` (64 KiB), ``table_size``
        (4 clusters).
        """
        refuse_unknown(options, "backing_file", "backing_fmt", "cluster_size", "table_size")
        cluster = parse_size(options.get("cluster_size", "64K"))
        if cluster & (cluster - 1) or not _CLUSTERS[0] <= cluster <= _CLUSTERS[1]:
            raise UsageError("QED cluster size must be a power of two from 4096 to 64M")
        table = parse_size(options.get("table_size", "4"))
        if table not in _TABLES[1:]:  # QEMU takes the end of a table of one cluster for wrong
            raise UsageError("QED table size must be 2, 4, 8 or 16 clusters")
        size = -(-size // SECTOR) * SECTOR
        largest = (table * cluster // 8) ** 2 * cluster
        if size > largest:
            raise OutOfBounds(f"a QED disk of these clusters has {largest} bytes at most")
        name = os.fsencode(options.get("backing_file", ""))
        if len(name) > _LONGEST_NAME:
            raise UsageError("the backing file's name is too long for QED")
        raw = _RAW_BACKING if options.get("backing_fmt") == "raw" else 0
        features = _BACKING | raw if name else 0
        place = (_HEADER.size, len(name)) if name else (0, 0)
        header = Header(cluster, table, features, cluster, size, place)
        storage.truncate(cluster * (1 + table))
        storage.pwrite(0, header.pack() + name)


FORMAT = QedFormat()
