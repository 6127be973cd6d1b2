"""The bitmap directory: where persistent bitmaps lie and what they are called.

The header extension holds: number of bitmaps (4 bytes), zero (4), directory size (8),
directory offset (8). A directory entry, padded to 8 bytes::

    0   bitmap table offset   12  flags: 1 in use, 2 auto, 4 extra data compatible
    8   bitmap table entries  16  type 1   17  log2 of granularity
    18  length of the name    20  length of the extra data, which follows, then the name
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import msgspec

from wirt.errors import CorruptImage
from wirt.image.base import BitmapInfo, Storage
from wirt.image.formats.qcow2.extensions import BITMAPS
from wirt.image.formats.qcow2.header import AUTOCLEAR_BITMAPS, MAX_NAME, Header

IN_USE, AUTO, EXTRA_COMPATIBLE = 1, 2, 4
MAX_BITMAPS = 65535
MAX_TABLE_ENTRIES = 0x8000000
MAX_DIRECTORY = 64 << 20

_EXTENSION = struct.Struct(">IIQQ")
_ENTRY = struct.Struct(">QIIBBHI")


class Bitmap(msgspec.Struct):
    table_offset: int
    table_size: int
    flags: int
    granularity_bits: int
    name: str
    extra: bytes = b""

    def pack(self) -> bytes:
        name = self.name.encode("utf-8", "surrogateescape")
        entry = _ENTRY.pack(
            self.table_offset,
            self.table_size,
            self.flags,
            1,
            self.granularity_bits,
            len(name),
            len(self.extra),
        )
        packed = entry + self.extra + name
        return packed + bytes(-len(packed) % 8)

    @property
    def in_use(self) -> bool:
        return bool(self.flags & IN_USE)

    def describe(self) -> BitmapInfo:
        return BitmapInfo(
            name=self.name,
            granularity=1 << self.granularity_bits,
            enabled=bool(self.flags & AUTO),
            in_use=self.in_use,
        )


def _extension(header: Header) -> tuple[int, int, int]:
    """Return (bitmaps, directory size, directory offset); zeros where there are none."""
    raw = header.extension(BITMAPS)
    if raw is None or not header.autoclear & AUTOCLEAR_BITMAPS:
        return 0, 0, 0
    if len(raw) != _EXTENSION.size:
        raise CorruptImage("the bitmaps extension has a wrong length")
    count, _, size, offset = _EXTENSION.unpack(raw)
    if not 0 < count <= MAX_BITMAPS or not 0 < size <= MAX_DIRECTORY:
        raise CorruptImage("the bitmaps extension is out of bounds")
    if offset % header.cluster_size or offset >> 56:
        raise CorruptImage("the bitmap directory has an invalid offset", offset=offset)
    return count, size, offset


def directory_extent(header: Header) -> tuple[int, int]:
    """Return (offset, length) of the directory; the length is 0 where there is none."""
    _, size, offset = _extension(header)
    return offset, size


def pack_extension(count: int, size: int, offset: int) -> bytes:
    return _EXTENSION.pack(count, 0, size, offset)


def pack_directory(bitmaps: Iterable[Bitmap]) -> bytes:
    return b"".join(bitmap.pack() for bitmap in bitmaps)


def read_directory(storage: Storage, header: Header) -> list[Bitmap]:
    """Return the image's bitmaps. Raises CorruptImage."""
    count, size, offset = _extension(header)
    raw = storage.pread(offset, size) if count else b""
    if len(raw) < size:
        raise CorruptImage("the bitmap directory is truncated", offset=offset)
    found: list[Bitmap] = []
    position = 0
    while position < size:
        bitmap, position = _parse_entry(raw, position, header)
        found.append(bitmap)
    if len(found) != count or len({bitmap.name for bitmap in found}) != count:
        raise CorruptImage("the bitmap directory does not hold the bitmaps it should")
    return found


def _parse_entry(raw: bytes, position: int, header: Header) -> tuple[Bitmap, int]:
    if position + _ENTRY.size > len(raw):
        raise CorruptImage("a bitmap directory entry is truncated")
    table, entries, flags, kind, bits, name_length, more = _ENTRY.unpack_from(raw, position)
    start = position + _ENTRY.size
    end = start + more + name_length
    if end > len(raw) or not 0 < name_length <= MAX_NAME:
        raise CorruptImage("a bitmap directory entry is out of bounds")
    if kind != 1 or not 9 <= bits <= 31 or table % header.cluster_size or table >> 56:
        raise CorruptImage("a bitmap directory entry is invalid")
    if entries > MAX_TABLE_ENTRIES:
        raise CorruptImage("a bitmap table is too large")
    extra = raw[start : start + more]
    name = raw[start + more : end].decode("utf-8", "surrogateescape")
    return Bitmap(table, entries, flags, bits, name, extra), end + (-(end - position) % 8)
