"""Header, region table, metadata and parent locator: bytes in, values out, and back."""

from __future__ import annotations

import struct
import uuid

import msgspec

from wirt.errors import CorruptImage, NotThisFormat, UnsupportedImage
from wirt.image.base import Budget, Storage
from wirt.image.formats.mapped import read_exactly, read_metadata
from wirt.image.formats.vhdx.crc import crc32c, crc_fits

SIGNATURE = b"vhdxfile"
HEADER_OFFSETS = (64 << 10, 128 << 10)
REGION_OFFSETS = (192 << 10, 256 << 10)
MIB = 1 << 20
_HEADER = struct.Struct("<4sIQ16s16s16sHHIQ")
_REGION = struct.Struct("<16sQII")
_ITEM = struct.Struct("<16sIIII")
_PAIR = struct.Struct("<IIHH")


def _id(text: str) -> bytes:
    return uuid.UUID(text).bytes_le


BAT_REGION = _id("2DC27766-F623-4200-9D64-115E9BFD4A08")
METADATA_REGION = _id("8B7CA206-4790-4B9A-B8FE-575F050F886E")
FILE_PARAMETERS = _id("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
DISK_SIZE = _id("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
DISK_ID = _id("BECA12AB-B2E6-4523-93EF-C309E000C746")
LOGICAL_SECTOR = _id("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
PHYSICAL_SECTOR = _id("CDA348C7-445D-4471-9CC9-E9885251C556")
PARENT_LOCATOR = _id("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")
LOCATOR_TYPE = _id("B04AEFB7-D19E-4A81-B789-25B8E9445913")
_KNOWN_ITEMS = {
    FILE_PARAMETERS, DISK_SIZE, DISK_ID, LOGICAL_SECTOR, PHYSICAL_SECTOR, PARENT_LOCATOR,
}  # fmt: skip


class Header(msgspec.Struct, frozen=True):
    sequence: int
    file_id: bytes
    data_id: bytes
    log_id: bytes = bytes(16)
    log_length: int = MIB
    log_offset: int = MIB

    @classmethod
    def parse(cls, data: bytes) -> Header | None:
        """Return the header, or None where there is no intact one."""
        if len(data) < 4096 or data[:4] != b"head" or not crc_fits(data[:4096], 4):
            return None
        f = _HEADER.unpack_from(data)
        if f[7] != 1 or f[6] != 0:
            raise UnsupportedImage(f"VHDX version {f[7]} with log version {f[6]} is not known")
        return cls(f[2], f[3], f[4], f[5], f[8], f[9])

    def pack(self) -> bytes:
        data = bytearray(4096)
        fields = (b"head", 0, self.sequence, self.file_id, self.data_id, self.log_id, 0, 1)
        _HEADER.pack_into(data, 0, *fields, self.log_length, self.log_offset)
        struct.pack_into("<I", data, 4, crc32c(data))
        return bytes(data)


def current_header(storage: Storage) -> tuple[Header, int]:
    """Return the valid header with the highest number, and which of the two it is."""
    found = []
    for slot, offset in enumerate(HEADER_OFFSETS):
        header = Header.parse(storage.pread(offset, 4096))
        if header is not None:
            found.append((header.sequence, slot, header))
    if not found:
        raise CorruptImage("neither VHDX header is intact")
    _, slot, header = max(found, key=lambda entry: entry[0])
    return header, slot


def regions(storage: Storage) -> dict[bytes, tuple[int, int]]:
    """Return offset and length of BAT and metadata."""
    for offset in REGION_OFFSETS:
        data = storage.pread(offset, 64 << 10)
        if len(data) == 64 << 10 and data[:4] == b"regi" and crc_fits(data, 4):
            return _parse_regions(data)
    raise CorruptImage("neither region table is intact")


def _parse_regions(data: bytes) -> dict[bytes, tuple[int, int]]:
    count = int.from_bytes(data[8:12], "little")
    if count > 2047:
        raise CorruptImage(f"a region table with {count} entries")
    found = {}
    for i in range(count):
        name, offset, length, required = _REGION.unpack_from(data, 16 + 32 * i)
        if name in {BAT_REGION, METADATA_REGION}:
            found[name] = (offset, length)
        elif required & 1:
            raise UnsupportedImage("the image needs a region that is not known")
    if len(found) != 2:
        raise CorruptImage("BAT or metadata region is missing")
    return found


def pack_regions(bat: tuple[int, int], metadata: tuple[int, int]) -> bytes:
    data = bytearray(64 << 10)
    struct.pack_into("<4sII", data, 0, b"regi", 0, 2)
    _REGION.pack_into(data, 16, BAT_REGION, *bat, 1)
    _REGION.pack_into(data, 48, METADATA_REGION, *metadata, 1)
    struct.pack_into("<I", data, 4, crc32c(data))
    return bytes(data)


class Item(msgspec.Struct, frozen=True):
    """A metadata item's place in the file."""

    offset: int
    length: int
    flags: int


class Metadata(msgspec.Struct, frozen=True):
    virtual_size: int
    block_size: int
    sector_size: int = 512
    has_parent: bool = False
    fixed: bool = False
    disk_id: bytes = bytes(16)
    physical_sector_size: int = 4096
    locator: dict[str, str] = msgspec.field(default_factory=dict)
    items: dict[bytes, Item] = msgspec.field(default_factory=dict)
    """Where each item of the file lies, those that are not known here too."""

    @classmethod
    def read(cls, storage: Storage, region: tuple[int, int], budget: Budget) -> Metadata:
        found = _items(storage, *region)
        items = {
            name: read_metadata(storage, item.offset, item.length, "a metadata item", budget)
            for name, item in found.items()
            if name in _KNOWN_ITEMS
        }
        missing = {FILE_PARAMETERS, DISK_SIZE, LOGICAL_SECTOR} - set(items)
        if missing:
            raise CorruptImage("the metadata lack the disk's size, sector or block size")
        block, flags = struct.unpack_from("<II", _sized(items, FILE_PARAMETERS, 8))
        size = int.from_bytes(_sized(items, DISK_SIZE, 8)[:8], "little")
        sector = int.from_bytes(_sized(items, LOGICAL_SECTOR, 4)[:4], "little")
        physical = int.from_bytes(items.get(PHYSICAL_SECTOR, b"\0\x10\0\0")[:4], "little")
        if block < MIB or block > 256 * MIB or block & (block - 1):
            raise CorruptImage(f"blocks cannot be {block} bytes long")
        if sector not in {512, 4096} or size % sector:
            raise CorruptImage(f"a disk of {size} bytes in sectors of {sector}")
        if size > 64 << 40:
            raise CorruptImage("a VHDX disk cannot be larger than 64 TiB")
        locator = parse_locator(items.get(PARENT_LOCATOR, b"")) if flags & 2 else {}
        disk = items.get(DISK_ID, bytes(16))[:16]
        return cls(
            size, block, sector, bool(flags & 2), bool(flags & 1), disk, physical, locator, found
        )

    def parameters(self) -> bytes:
        return struct.pack("<II", self.block_size, self.fixed | self.has_parent << 1)

    def pack(self) -> bytes:
        """Return the metadata region's bytes: the table, and its items from 64 KiB on."""
        items = [
            (FILE_PARAMETERS, self.parameters(), 4),
            (DISK_SIZE, struct.pack("<Q", self.virtual_size), 6),
            (DISK_ID, self.disk_id, 6),
            (LOGICAL_SECTOR, struct.pack("<I", self.sector_size), 6),
            (PHYSICAL_SECTOR, struct.pack("<I", self.physical_sector_size), 6),
        ]
        if self.has_parent:
            items.append((PARENT_LOCATOR, pack_locator(self.locator), 4))
        table = bytearray(64 << 10)
        struct.pack_into("<8sHH", table, 0, b"metadata", 0, len(items))
        body = bytearray()
        for i, (name, data, kind) in enumerate(items):
            at = (64 << 10) + len(body)
            _ITEM.pack_into(table, 32 + 32 * i, name, at, len(data), kind, 0)
            body += data + bytes(-len(data) % 8)
        return bytes(table + body)


def _sized(items: dict[bytes, bytes], name: bytes, length: int) -> bytes:
    if len(items[name]) < length:
        raise CorruptImage("a metadata item is cut off")
    return items[name]


def _items(storage: Storage, offset: int, length: int) -> dict[bytes, Item]:
    table = read_exactly(storage, offset, 64 << 10, "the metadata table")
    if table[:8] != b"metadata":
        raise CorruptImage("there is no metadata table", offset=offset)
    count = int.from_bytes(table[10:12], "little")
    if count > 2047:
        raise CorruptImage(f"a metadata table with {count} entries")
    items = {}
    for i in range(count):
        name, at, size, flags, _ = _ITEM.unpack_from(table, 32 + 32 * i)
        if name not in _KNOWN_ITEMS and flags & 4:
            raise UnsupportedImage("the image needs a metadata item that is not known")
        if at + size > length or size > MIB:
            raise CorruptImage("a metadata item lies outside its region")
        items[name] = Item(offset + at, size, flags)
    return items


def pack_item_table(items: dict[bytes, Item], region: int) -> bytes:
    """Return the metadata table that names ``items``, as long as its used part."""
    table = bytearray(32 + 32 * len(items))
    struct.pack_into("<8sHH", table, 0, b"metadata", 0, len(items))
    for i, (name, item) in enumerate(items.items()):
        place = item.offset - region
        _ITEM.pack_into(table, 32 + 32 * i, name, place, item.length, item.flags, 0)
    return bytes(table)


def parse_locator(data: bytes) -> dict[str, str]:
    """Return the keys and values of a parent locator. Raises CorruptImage."""
    if len(data) < 20 or data[:16] != LOCATOR_TYPE:
        raise CorruptImage("there is no parent locator of a known kind")
    count = int.from_bytes(data[18:20], "little")
    if 20 + 12 * count > len(data):
        raise CorruptImage("the parent locator is cut off")
    found = {}
    for i in range(count):
        key, value, key_length, value_length = _PAIR.unpack_from(data, 20 + 12 * i)
        if max(key + key_length, value + value_length) > len(data):
            raise CorruptImage("the parent locator is cut off")
        name = data[key : key + key_length].decode("utf-16-le", "replace")
        found[name] = data[value : value + value_length].decode("utf-16-le", "replace")
    return found


def pack_locator(pairs: dict[str, str]) -> bytes:
    head = bytearray(LOCATOR_TYPE + struct.pack("<HH", 0, len(pairs)))
    start = len(head) + 12 * len(pairs)
    body = bytearray()
    for name, text in pairs.items():
        key, value = name.encode("utf-16-le"), text.encode("utf-16-le")
        at = start + len(body)
        head += _PAIR.pack(at, at + len(key), len(key), len(value))
        body += key + value
    return bytes(head + body)


def refuse_other(storage: Storage) -> None:
    if storage.pread(0, 8) != SIGNATURE:
        raise NotThisFormat("there is no VHDX signature")
