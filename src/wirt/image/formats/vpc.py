"""vpc (VHD): disks of Virtual PC, Hyper-V generation 1, Azure and XenServer.

Specification: "Virtual Hard Disk Image Format Specification" 1.0 (Microsoft, 2006). All
numbers are big-endian.

::

    fixed         data | footer (512 bytes)
    dynamic       footer copy | header (1024) | BAT | blocks | footer
    differencing  as dynamic, with the parent's id, name and locators in the header

    footer   0 "conectix"   8 features     12 version    16 offset of header (all ones: fixed)
            24 time         28 creator     32 its version 36 its system
            40 first size   48 size        56 cylinders 58 heads 59 sectors
            60 type: 2 fixed, 3 dynamic, 4 differencing   64 checksum   68 id   84 saved state
    header   0 "cxsparse"   8 all ones     16 offset of BAT   24 version   28 BAT entries
            32 block size   36 checksum    40 parent's id     56 its time  64 its name (UTF-16BE)
           576 eight locators of 24 bytes: code, space, length, reserved, offset
    BAT      u32 sector of each block, all ones: not allocated
    block    a bitmap of its sectors (whole sectors long; highest bit first), then the data

In a differencing disk a sector whose bit is 0 is the parent's, even in an allocated block.

The size: Virtual PC and the first QEMU versions ("vpc ", "qemu") believe the geometry, all
others the size field. Images written here say "qem2", whose size field every reader takes.
"""

from __future__ import annotations

import os
import struct
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from wirt.errors import (
    CorruptImage,
    ImageAccessDenied,
    ImageError,
    NotThisFormat,
    OutOfBounds,
    UnsupportedImage,
    UsageError,
)
from wirt.image.base import (
    Extent,
    ExtentKind,
    Format,
    Image,
    ImageInfo,
    OpenOptions,
    Storage,
    WritableImage,
)
from wirt.image.formats.mapped import (
    SECTOR,
    BlockImage,
    MappedImage,
    read_exactly,
    read_metadata,
    refuse_unknown,
    run_of_bits,
    stored_size,
    verbatim,
)
from wirt.image.storage.file import FileStorage

FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4
_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16sB")
_HEADER = struct.Struct(">8sQQIIII16sII512s")
_LOCATOR = struct.Struct(">4sIIIQ")
_EPOCH_2000 = 946684800
_NOT_ALLOCATED = 0xFFFFFFFF
_ALL_ONES = 0xFFFFFFFFFFFFFFFF
_MIB = 1 << 20
_BLOCK = 2 << 20
_MAX_SIZE = 2040 << 30
_MAX_GEOMETRY = 65535 * 16 * 255
_CACHED_BITMAPS = 64


def checksum(data: bytes | bytearray, field: int) -> int:
    """Return the ones' complement of the sum of bytes, the checksum field left out."""
    return ~(sum(data) - sum(data[field : field + 4])) & 0xFFFFFFFF


def geometry(sectors: int) -> tuple[int, int, int]:
    """Return cylinders, heads and sectors per track as the specification computes them."""
    total = min(sectors, _MAX_GEOMETRY)
    if total >= 65535 * 16 * 63:
        return total // 255 // 16, 16, 255
    heads, per_track = max(4, -(-(total // 17) // 1024)), 17
    if total // 17 >= heads * 1024 or heads > 16:
        heads, per_track = 16, 31
        if total // 31 >= heads * 1024:
            per_track = 63
    return total // per_track // heads, heads, per_track


@dataclass(frozen=True, slots=True)
class Footer:
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
        if self.creator in {b"vpc ", b"qemu"} and 0 < product < _MAX_GEOMETRY:
            return product * SECTOR
        return self.size // SECTOR * SECTOR


def find_footer(storage: Storage) -> tuple[Footer | None, bool]:
    """Return the intact footer, and whether it is the one at the file's end."""
    size = storage.size()
    last = Footer.parse(storage.pread(size - SECTOR, SECTOR)) if size >= SECTOR else None
    if last is not None:
        return last, True
    return Footer.parse(storage.pread(0, SECTOR)), False


@dataclass(frozen=True, slots=True)
class Header:
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
            data, 0, b"cxsparse", _ALL_ONES, self.table_offset, 0x10000, self.entries,
            self.block_size, 0, self.parent_id, self.parent_time, 0, name,
        )  # fmt: skip
        for i, (code, space, length, offset) in enumerate(self.locators):
            _LOCATOR.pack_into(data, 576 + 24 * i, code, space, length, 0, offset)
        struct.pack_into(">I", data, 36, checksum(data, 36))
        return bytes(data)


class FixedVpcImage(MappedImage, WritableImage):
    """The disk's bytes and a footer behind them."""

    format_name = "vpc"

    def __init__(self, storage: Storage, footer: Footer) -> None:
        self.storage = storage
        self.footer = footer
        inside = max(0, storage.size() - SECTOR)
        self.virtual_size = footer.virtual_size
        if self.virtual_size > inside:
            raise CorruptImage(f"the footer says {footer.size} bytes, the file has {inside}")

    def _run(self, offset: int, limit: int) -> Extent:
        return verbatim(offset, limit, self.storage, offset)

    def info(self) -> ImageInfo:
        return ImageInfo(
            "vpc", self.virtual_size, stored_size(self.storage), specific={"subformat": "fixed"}
        )

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._check(offset, memoryview(data).nbytes)
        self.storage.pwrite(offset, data)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self._check(offset, length)
        if unmap and self.storage.punch_hole(offset, length):
            return
        for at in range(offset, offset + length, 1 << 20):
            self.storage.pwrite(at, bytes(min(1 << 20, offset + length - at)))

    def discard(self, offset: int, length: int) -> None:
        self.write_zeroes(offset, length)

    def flush(self) -> None:
        self.storage.flush()


class DynamicVpcImage(BlockImage):
    """Blocks through the BAT; a differencing disk also looks at each block's bitmap."""

    format_name = "vpc"

    def __init__(self, storage: Storage, footer: Footer, options: OpenOptions) -> None:
        super().__init__()
        self.storage = storage
        self.footer = footer
        self.writable = options.writable
        self.virtual_size = footer.virtual_size
        if self.virtual_size > _MAX_SIZE:
            raise UnsupportedImage("a dynamic VHD cannot be larger than 2040 GiB")
        head = read_exactly(storage, footer.header_offset, 1024, "the dynamic disk header")
        self.header = Header.parse(head)
        self.block_size = self.header.block_size
        self._bitmap_size = -(-self.block_size // SECTOR // 8 // SECTOR) * SECTOR
        needed = -(-self.virtual_size // self.block_size)
        if needed > self.header.entries:
            raise CorruptImage(f"the table has {self.header.entries} entries, needed: {needed}")
        at = self.header.table_offset
        table = read_metadata(storage, at, 4 * needed, "the block table", options.budget)
        self._table: list[int] = list(struct.unpack(f">{needed}I", table))
        self._bits: dict[int, str] = {}
        self._next = self._end_of_use(needed)
        if self.writable and self._next > storage.size():
            raise CorruptImage("blocks lie beyond the end of the file")

    @property
    def differencing(self) -> bool:
        return self.footer.kind == DIFFERENCING

    def _end_of_use(self, entries: int) -> int:
        end = max(self.footer.header_offset + 1024, self.header.table_offset + 4 * entries)
        end = max([end, *(space_end(entry) for entry in self.header.locators)])
        used = [sector for sector in self._table if sector != _NOT_ALLOCATED]
        last = max(used, default=0) * SECTOR + self._bitmap_size + self.block_size if used else 0
        return max(end, last)

    def _place(self, index: int) -> int | None:
        sector = self._table[index]
        if sector == _NOT_ALLOCATED:
            return None
        place = sector * SECTOR
        if place + self._bitmap_size > self.storage.size():
            raise CorruptImage(f"block {index} lies beyond the end of the file", offset=place)
        return place

    def _run(self, offset: int, limit: int) -> Extent:
        index, inside = divmod(offset, self.block_size)
        length = min(limit, self.block_size - inside)
        place = self._place(index)
        if place is None:
            return Extent(offset, length, ExtentKind.HOLE)
        if self.differencing:
            length, present = self._present(index, place, inside, length)
            if not present:
                return Extent(offset, length, ExtentKind.HOLE)
        at = place + self._bitmap_size + inside
        return Extent(offset, length, ExtentKind.DATA, storage=self.storage, storage_offset=at)

    def _present(self, index: int, place: int, inside: int, length: int) -> tuple[int, bool]:
        """Return how far the sectors from ``inside`` on are all present, or all not."""
        bits = self._bitmap(index, place)
        sector = inside // SECTOR
        end = run_of_bits(bits, sector) * SECTOR
        return min(length, end - inside), bits[sector] == "1"

    def _bitmap(self, index: int, place: int) -> str:
        bits = self._bits.get(index)
        if bits is None:
            if len(self._bits) >= _CACHED_BITMAPS:
                self._bits.clear()
            raw = read_exactly(self.storage, place, self._bitmap_size, "a sector bitmap")
            count = self.block_size // SECTOR
            bits = format(int.from_bytes(raw), f"0{8 * len(raw)}b")[:count]
            self._bits[index] = bits
        return bits

    def _store(self, index: int, content: bytes) -> None:
        place = self._place(index)
        if place is not None:
            # The data first: until the bits are set, its sectors are the parent's.
            self.storage.pwrite(place + self._bitmap_size, content)
            self._bits.pop(index, None)
            self.storage.flush()
            self.storage.pwrite(place, self._full_bitmap())
            return
        place = self._append(self._full_bitmap() + content)
        if place // SECTOR >= _NOT_ALLOCATED:
            raise OutOfBounds("a VHD file cannot grow beyond 2 TiB")
        self._table[index] = place // SECTOR
        self._bits.pop(index, None)

    def _full_bitmap(self) -> bytes:
        count = self.block_size // SECTOR // 8
        return (b"\xff" * max(count, 1)).ljust(self._bitmap_size, b"\0")

    def _publish(self, indexes: list[int]) -> None:
        self.storage.pwrite(-(-self._next // SECTOR) * SECTOR, self.footer_bytes())
        self.storage.flush()
        for index in indexes:
            entry = struct.pack(">I", self._table[index])
            self.storage.pwrite(self.header.table_offset + 4 * index, entry)

    def footer_bytes(self) -> bytes:
        """Return the footer as it is: the copy at the file's start."""
        return read_exactly(self.storage, 0, SECTOR, "the copy of the footer")

    def parent_names(self) -> Iterator[str]:
        """Yield the names under which the parent may be found, the best first."""
        for wanted in (b"W2ru", b"Wi2r", b"W2ku", b"Wi2k", b"MacX"):
            for code, _, length, offset in self.header.locators:
                if code == wanted:
                    yield _local_name(self._locator(offset, length), code)
        if self.header.parent_name:
            yield _local_name(self.header.parent_name, b"W2ku")

    def _locator(self, offset: int, length: int) -> str:
        if length > 64 << 10:
            raise CorruptImage(f"a parent locator of {length} bytes")
        data = read_exactly(self.storage, offset, length, "a parent locator")
        return data.decode("utf-16-le", "replace").rstrip("\0")

    def info(self) -> ImageInfo:
        kind = "differencing" if self.differencing else "dynamic"
        name = next(self.parent_names(), "") if self.differencing else ""
        return ImageInfo(
            "vpc",
            self.virtual_size,
            stored_size(self.storage),
            self.block_size,
            backing_name=name,
            backing_format="vpc" if name else "",
            specific={"subformat": kind},
        )


def space_end(locator: tuple[bytes, int, int, int]) -> int:
    """Return where a locator's space ends: old writers count it in sectors."""
    _, space, length, offset = locator
    return offset + max(space if space >= SECTOR else space * SECTOR, length)


def _local_name(name: str, code: bytes) -> str:
    """Return a Windows name as one beside the image: a drive means nothing here."""
    local = name.replace("\\", "/")
    if code in {b"W2ku", b"Wi2k", b"MacX"} or ":" in local:
        return local.rsplit("/", 1)[-1]
    return local.removeprefix("./")


def open_parent(image: DynamicVpcImage, options: OpenOptions) -> Image:
    """Open the parent that the locators name and check that it is the right one."""
    names = list(dict.fromkeys(image.parent_names()))
    if options.related is None:
        raise ImageAccessDenied(f"the image needs its parent {names[:1]}")
    parent = options.related.image(names, format="vpc")
    footer = getattr(parent, "footer", None)
    if footer is None or footer.id != image.header.parent_id:
        parent.close()
        raise CorruptImage(
            "the parent is not the disk that this one was made from",
            hint="find the parent whose id the image holds",
        )
    return parent


class VpcFormat(Format):
    name = "vpc"
    suffixes = (".vhd",)
    images = (FixedVpcImage, DynamicVpcImage)
    has_backing = True

    def probe(self, storage: Storage) -> bool:
        try:
            head = storage.pread(0, 8)
            footer, _ = find_footer(storage)
        except ImageError:
            return False
        return footer is not None or head == b"conectix"

    def open(self, storage: Storage, options: OpenOptions) -> Image:
        footer, _ = find_footer(storage)
        if footer is None:
            raise NotThisFormat("there is no intact VHD footer")
        if footer.kind == FIXED:
            return FixedVpcImage(storage, footer)
        if footer.kind not in {DYNAMIC, DIFFERENCING}:
            raise UnsupportedImage(f"VHD type {footer.kind} is not known")
        image = DynamicVpcImage(storage, footer, options)
        if image.differencing and options.with_backing:
            image.backing = open_parent(image, options)
        return image

    def create(self, storage: Storage, size: int, options: Mapping[str, str]) -> None:
        """Options: ``subformat`` (dynamic, fixed), ``azure`` (on: fixed, whole MiB),
        ``force_size`` (accepted; the size is always exact), ``backing_file`` (differencing).
        """  # fmt: skip
        refuse_unknown(options, "subformat", "azure", "force_size", "backing_file", "backing_fmt")
        kind = options.get("subformat", "dynamic")
        if kind not in {"dynamic", "fixed"}:
            raise UsageError(f"Invalid parameter '{kind}'", hint="subformat: dynamic or fixed")
        if options.get("azure") == "on":
            kind, size = "fixed", -(-size // _MIB) * _MIB
        size = -(-size // SECTOR) * SECTOR
        now = max(0, int(time.time()) - _EPOCH_2000)
        footer = Footer(DYNAMIC, size, SECTOR, uuid.uuid4().bytes, now)
        if kind == "fixed":
            footer = replace(footer, kind=FIXED, header_offset=_ALL_ONES)
            storage.truncate(size)
            storage.pwrite(size, footer.pack())
            return
        parent = options.get("backing_file", "")
        _create_dynamic(storage, footer, _parent(storage, parent) if parent else None, parent)


def _parent(storage: Storage, name: str) -> Footer:
    path = os.path.join(os.path.dirname(storage.name), name)
    with FileStorage(path) as file:
        footer, _ = find_footer(file)
    if footer is None:
        raise UnsupportedImage(
            "the parent of a VHD must itself be a VHD", hint="use qcow2 for other backing images"
        )
    return footer


def _create_dynamic(storage: Storage, footer: Footer, parent: Footer | None, name: str) -> None:
    if parent is not None:
        size = footer.size or parent.virtual_size
        footer = replace(footer, kind=DIFFERENCING, size=size)
    if footer.size > _MAX_SIZE:
        raise OutOfBounds("a dynamic VHD cannot be larger than 2040 GiB")
    entries = -(-footer.size // _BLOCK)
    header = Header(SECTOR + 1024, max(entries, 1), _BLOCK)
    end = header.table_offset + -(-4 * header.entries // SECTOR) * SECTOR
    if parent is not None:
        header, end = _with_locators(storage, header, parent, name, end)
    storage.pwrite(0, footer.pack() + header.pack())
    storage.pwrite(header.table_offset, b"\xff" * (-(-4 * header.entries // SECTOR) * SECTOR))
    storage.pwrite(end, footer.pack())


def _with_locators(
    storage: Storage, header: Header, parent: Footer, name: str, end: int
) -> tuple[Header, int]:
    """Write the parent's relative and absolute names; return the header and their end."""
    absolute = os.path.abspath(os.path.join(os.path.dirname(storage.name), name))
    relative = name if not os.path.isabs(name) else os.path.basename(name)
    locators = []
    for code, text in ((b"W2ru", ".\\" + relative.replace("/", "\\")), (b"W2ku", absolute)):
        data = text.encode("utf-16-le")
        space = -(-len(data) // SECTOR) * SECTOR
        storage.pwrite(end, data.ljust(space, b"\0"))
        locators.append((code, space, len(data), end))
        end += space
    return (
        replace(
            header,
            parent_id=parent.id,
            parent_time=parent.timestamp,
            parent_name=os.path.basename(name),
            locators=tuple(locators),
        ),
        end,
    )


FORMAT = VpcFormat()
