"""Footer, dynamic disk header and geometry: bytes in, values out, and back."""

from __future__ import annotations

import struct

import msgspec

from wirt.errors import CorruptImage
from wirt.image.base import Storage
from wirt.image.formats.mapped import SECTOR

FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4
_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16sB")
_HEADER = struct.Struct(">8sQQIIII16sII512s")
_LOCATOR = struct.Struct(">4sIIIQ")
EPOCH_2000 = 946684800
NOT_ALLOCATED = 0xFFFFFFFF
ALL_ONES = 0xFFFFFFFFFFFFFFFF
BLOCK = 2 << 20
MAX_SIZE = 2040 << 30
MAX_GEOMETRY = 65535 * 16 * 255


def checksum(data: bytes | bytearray, field: int) -> int:
    """Return the ones' complement of the sum of bytes, the checksum field left out."""
    return ~(sum(data) - sum(data[field : field + 4])) & 0xFFFFFFFF


def geometry(sectors: int) -> tuple[int, int, int]:
    """Return cylinders, heads and sectors per track as the specification computes them."""
    total = min(sectors, MAX_GEOMETRY)
    if total >= 65535 * 16 * 63:
        return total // 255 // 16, 16, 255
    heads, per_track = max(4, -(-(total // 17) // 1024)), 17
    if total // 17 >= heads * 1024 or heads > 16:
        heads, per_track = 16, 31
        if total // 31 >= heads * 1024:
            per_track = 63
    return total // per_track // heads, heads, per_track


def fitting_geometry(sectors: int) -> int:
    """Return the least number of sectors, from ``sectors`` on, that a geometry gives exactly.

    Virtual PC takes a disk to be as large as its geometry says.
    """
    if sectors > MAX_GEOMETRY:
        return sectors
    cylinders, heads, per_track = geometry(sectors)
    wanted = sectors
    while cylinders * heads * per_track < sectors:
        wanted += 1
        cylinders, heads, per_track = geometry(wanted)
    return cylinders * heads * per_track


class Footer(msgspec.Struct, frozen=True):
    kind: int
    size: int
    header_offset: int
    id: bytes
    timestamp: int
    creator: bytes = b"qem2"
    chs: tuple[int, int, int] = (0, 0, 0)

    @classmethod
    def parse(cls, data: bytes) -> Footer | None:
        """Return the footer, or None where there is no intact one."""
        if len(data) < SECTOR or data[:8] != b"conectix":
            return None
        f = _FOOTER.unpack_from(data)
        if f[14] != checksum(data[:SECTOR], 64):
            return None
        return cls(f[13], f[9], f[3], f[15], f[4], f[5], f[10:13])

    def pack(self) -> bytes:
        chs = geometry(self.size // SECTOR)
        fields = [b"conectix", 2, 0x10000, self.header_offset, self.timestamp, b"qem2", 0x50003]
        fields += [b"Wi2k", self.size, self.size, *chs, self.kind, 0, self.id, 0]
        data = bytearray(_FOOTER.pack(*fields).ljust(SECTOR, b"\0"))
        struct.pack_into(">I", data, 64, checksum(data, 64))
        return bytes(data)

    @property
    def virtual_size(self) -> int:
        cylinders, heads, sectors = self.chs
        product = cylinders * heads * sectors
        if self.creator in {b"vpc ", b"qemu"} and 0 < product < MAX_GEOMETRY:
            return product * SECTOR
        return self.size // SECTOR * SECTOR


def find_footer(storage: Storage) -> tuple[Footer | None, bool]:
    """Return the intact footer, and whether it is the one at the file's end."""
    size = storage.size()
    last = Footer.parse(storage.pread(size - SECTOR, SECTOR)) if size >= SECTOR else None
    if last is not None:
        return last, True
    return Footer.parse(storage.pread(0, SECTOR)), False


class Header(msgspec.Struct, frozen=True):
    table_offset: int
    entries: int
    block_size: int
    parent_id: bytes = bytes(16)
    parent_time: int = 0
    parent_name: str = ""
    locators: tuple[tuple[bytes, int, int, int], ...] = ()
    """Code, space, length and offset of each."""

    @classmethod
    def parse(cls, data: bytes) -> Header:
        f = _HEADER.unpack_from(data)
        if f[0] != b"cxsparse":
            raise CorruptImage("there is no dynamic disk header")
        if f[6] != checksum(data, 36):
            raise CorruptImage("the checksum of the dynamic disk header is wrong")
        block = f[5]
        if block < SECTOR or block & (block - 1) or block > 256 << 20:
            raise CorruptImage(f"blocks cannot be {block} bytes long")
        locators = []
        for code, space, length, _, offset in _LOCATOR.iter_unpack(data[576 : 576 + 8 * 24]):
            if code != b"\0\0\0\0":
                locators.append((code, space, length, offset))
        name = f[10].decode("utf-16-be", "replace").split("\0")[0]
        return cls(f[2], f[4], block, f[7], f[8], name, tuple(locators))

    def pack(self) -> bytes:
        name = self.parent_name.encode("utf-16-be")[:510]
        data = bytearray(1024)
        _HEADER.pack_into(
            data, 0, b"cxsparse", ALL_ONES, self.table_offset, 0x10000, self.entries,
            self.block_size, 0, self.parent_id, self.parent_time, 0, name,
        )  # fmt: skip
        for i, (code, space, length, offset) in enumerate(self.locators):
            _LOCATOR.pack_into(data, 576 + 24 * i, code, space, length, 0, offset)
        struct.pack_into(">I", data, 36, checksum(data, 36))
        return bytes(data)
