"""Dynamic and differencing disks: blocks through the BAT."""

from __future__ import annotations

import os
import struct
import urllib.parse
from collections.abc import Iterator

from msgspec.structs import replace

from wirt.errors import CorruptImage, ImageAccessDenied, OutOfBounds, UnsupportedImage
from wirt.image.base import Extent, ExtentKind, Image, ImageInfo, OpenOptions, Storage
from wirt.image.formats.mapped import (
    CHECK_HINT,
    SECTOR,
    read_exactly,
    read_metadata,
    run_of_bits,
    stored_size,
)
from wirt.image.formats.table_check import Use
from wirt.image.formats.table_image import OverlayTable, ResizableTable
from wirt.image.formats.vpc.structures import (
    DIFFERENCING,
    DYNAMIC,
    MAX_SIZE,
    NOT_ALLOCATED,
    Footer,
    Header,
    find_footer,
)
from wirt.image.storage.file import FileStorage

_CACHED_BITMAPS = 64
_LONGEST_LOCATOR = 64 << 10


class DynamicVpcImage(ResizableTable, OverlayTable):
    """A differencing disk also looks at each block's bitmap."""

    format_name = "vpc"
    _align = 4096

    def __init__(self, storage: Storage, footer: Footer, options: OpenOptions) -> None:
        super().__init__(storage, options)
        self.footer = footer
        self.virtual_size = footer.virtual_size
        if self.virtual_size > MAX_SIZE:
            raise UnsupportedImage("a dynamic VHD cannot be larger than 2040 GiB")
        head = read_exactly(storage, footer.header_offset, 1024, "the dynamic disk header")
        self.header = Header.parse(head)
        self.block_size = self.header.block_size
        self._lead = -(-self.block_size // SECTOR // 8 // SECTOR) * SECTOR
        needed = self._block_count
        if needed > self.header.entries:
            raise CorruptImage(f"the table has {self.header.entries} entries, needed: {needed}")
        at = self.header.table_offset
        table = read_metadata(storage, at, 4 * needed, "the block table", options.budget)
        self._table: list[int] = list(struct.unpack(f">{needed}I", table))
        self._bits: dict[int, str] = {}
        self._trusted = False
        self._next_header = self.header
        if self.writable:
            self._find_room(allow_dirty=options.allow_dirty)

    def _find_room(self, *, allow_dirty: bool) -> None:
        size = self.storage.size()
        last = max((sector for sector in self._table if sector != NOT_ALLOCATED), default=0)
        if last and last * SECTOR + self._span > size and not allow_dirty:
            raise CorruptImage("blocks lie beyond the end of the file", hint=CHECK_HINT)
        # What lies before the footer may be somebody's, though no entry names it.
        self._next = size - SECTOR if self._ends_with_footer() else -(-size // SECTOR) * SECTOR

    def _ends_with_footer(self) -> bool:
        size = self.storage.size()
        return Footer.parse(self.storage.pread(max(0, size - SECTOR), SECTOR)) is not None

    @property
    def differencing(self) -> bool:
        return self.footer.kind == DIFFERENCING

    # Reading

    def _run(self, offset: int, limit: int) -> Extent:
        index, inside = divmod(offset, self.block_size)
        length = min(limit, self.block_size - inside)
        place = self._place_of(index)
        if place is None:
            return Extent(offset, length, ExtentKind.HOLE)
        if place + self._lead > self.storage.size():
            raise CorruptImage(f"block {index} lies beyond the end of the file", offset=place)
        if self.differencing:
            length, present = self._present(index, place, inside, length)
            if not present:
                return Extent(offset, length, ExtentKind.HOLE)
        at = place + self._lead + inside
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
            raw = read_exactly(self.storage, place, self._lead, "a sector bitmap")
            count = self.block_size // SECTOR
            bits = format(int.from_bytes(raw), f"0{8 * len(raw)}b")[:count]
            self._bits[index] = bits
        return bits

    # The table

    def _place_of(self, index: int) -> int | None:
        sector = self._table[index]
        return None if sector == NOT_ALLOCATED else sector * SECTOR

    def _point(self, index: int, place: int) -> None:
        if place // SECTOR >= NOT_ALLOCATED:
            raise OutOfBounds("a VHD file cannot grow beyond 2 TiB")
        self._table[index] = place // SECTOR
        self._bits.pop(index, None)

    def _forget(self, index: int) -> None:
        self._table[index] = NOT_ALLOCATED
        self._bits.pop(index, None)

    def _new_place(self, index: int) -> int:
        data = super()._new_place(index)
        self.storage.pwrite(data - self._lead, self._full_bitmap())
        return data

    def _store(self, index: int, content: bytes) -> None:
        place = self._place_of(index)
        if place is None or not self.differencing or place + self._span > self.storage.size():
            super()._store(index, content)
            return
        # The data first: until the bits are set, its sectors are the parent's.
        self.storage.pwrite(place + self._lead, content)
        self._bits.pop(index, None)
        self.storage.flush()
        self.storage.pwrite(place, self._full_bitmap())

    def _full_bitmap(self) -> bytes:
        count = self.block_size // SECTOR // 8
        return (b"\xff" * max(count, 1)).ljust(self._lead, b"\0")

    def _publish(self, indexes: list[int]) -> None:
        self._write_footer()
        self.storage.flush()
        for index in indexes:
            entry = struct.pack(">I", self._table[index])
            self.storage.pwrite(self.header.table_offset + 4 * index, entry)

    def _write_footer(self) -> None:
        self._next = -(-self._next // SECTOR) * SECTOR
        self.storage.pwrite(self._next, read_exactly(self.storage, 0, SECTOR, "the footer's copy"))

    def _before_write(self) -> None:
        """Make the footer's copy as the footer is: it must do for it while the file grows."""
        super()._before_write()
        if self._trusted:
            return
        self._trusted = True
        footer, at_end = find_footer(self.storage)
        copy = Footer.parse(self.storage.pread(0, SECTOR))
        if footer is not None and at_end and copy != footer:
            self.storage.pwrite(0, self.storage.pread(self.storage.size() - SECTOR, SECTOR))
            self.storage.flush()

    # What the header says

    def _replace_header(self, header: Header, footer: Footer) -> None:
        """Put a new header behind everything; the footer at the end switches to it."""
        place = -(-self._next // SECTOR) * SECTOR
        self.storage.pwrite(place, header.pack())
        self._next = place + 1024
        self.storage.flush()
        self._replace_footer(replace(footer, header_offset=place))
        self.header = header

    def _replace_footer(self, footer: Footer) -> None:
        packed = footer.pack()
        for at in (self._next, 0):
            self.storage.pwrite(at, packed)
            self.storage.flush()
        self.footer = Footer.parse(packed) or footer

    def _refuse_size(self, size: int) -> None:
        if size > MAX_SIZE:
            raise OutOfBounds("a dynamic VHD cannot be larger than 2040 GiB")

    def _extend(self, blocks: int) -> None:
        self._table += [NOT_ALLOCATED] * (blocks - len(self._table))
        self._next_header = self.header
        if blocks > self.header.entries:
            place = -(-self._next // SECTOR) * SECTOR
            self._next = place + -(-4 * blocks // SECTOR) * SECTOR
            self._next_header = replace(self.header, table_offset=place, entries=blocks)

    def _switch(self, size: int) -> None:
        footer = replace(self.footer, size=size)
        if size < self.virtual_size:
            self._replace_footer(footer)
            return
        header = self._next_header
        table = struct.pack(f">{len(self._table)}I", *self._table)
        if header != self.header:
            table = table.ljust(-(-len(table) // SECTOR) * SECTOR, b"\xff")
        self.storage.pwrite(header.table_offset, table)
        self.storage.flush()
        if header == self.header:
            self._replace_footer(footer)
        else:
            self._replace_header(header, footer)

    def _cut(self, blocks: int) -> None:
        del self._table[blocks:]

    def set_backing(self, name: str | None, backing_format: str | None) -> None:
        self._before_write()
        self._settle_bitmaps(becomes_child=name is not None)
        self.flush()
        header = replace(self.header, parent_id=bytes(16), parent_name="", locators=())
        kind = DYNAMIC
        if name is not None:
            place = -(-self._next // SECTOR) * SECTOR
            header, self._next = with_parent(self.storage, header, name, place)
            kind = DIFFERENCING
        self._replace_header(header, replace(self.footer, kind=kind))

    def _settle_bitmaps(self, *, becomes_child: bool) -> None:
        """Let every block be this disk's alone before its bitmap begins, or ceases, to count."""
        for index in list(self._allocated()):
            place = self._place_of(index) or 0
            if not self.differencing and becomes_child:
                self.storage.pwrite(place, self._full_bitmap())
            elif self.differencing and not becomes_child and "0" in self._bitmap(index, place):
                start = index * self.block_size
                self._store(index, self._overlaid(index, start, memoryview(b"")))

    # Checking

    def _metadata(self) -> Iterator[Use]:
        yield Use(0, SECTOR, "the footer's copy")
        yield Use(self.footer.header_offset, 1024, "the header")
        end = self.header.table_offset + -(-4 * self.header.entries // SECTOR) * SECTOR
        yield Use(self.header.table_offset, end - self.header.table_offset, "the block table")
        for _, space, length, offset in self.header.locators:
            # Old writers count the space in sectors.
            space_bytes = space if space >= SECTOR else space * SECTOR
            yield Use(offset, max(space_bytes, length), "a parent locator")
        batmap = self.storage.pread(end, SECTOR)
        if batmap[:8] == b"tdbatmap" and len(batmap) == SECTOR:
            offset, sectors = struct.unpack_from(">QI", batmap, 8)
            yield Use(end, SECTOR, "the header of the batmap")
            yield Use(offset, sectors * SECTOR, "the batmap")

    def _uses(self) -> Iterator[Use]:
        yield from super()._uses()
        if self._ends_with_footer():
            yield Use(self.storage.size() - SECTOR, SECTOR, "the footer")

    def _own_faults(self) -> list[str]:
        footer, at_end = find_footer(self.storage)
        copy = Footer.parse(self.storage.pread(0, SECTOR))
        found = [] if at_end else ["there is no intact footer at the end of the file"]
        if copy is None or copy != footer:
            found.append("the copy of the footer is not like the footer")
        return found

    def _repair(self, *, everything: bool) -> None:
        super()._repair(everything=everything)
        if not self._ends_with_footer():
            self._next = -(-self.storage.size() // SECTOR) * SECTOR
            self._write_footer()
            self.storage.flush()

    def _trim(self) -> None:
        """Put the footer behind everything in use; what lies after it goes."""
        self._next = max(use.end for use in super()._uses())
        self._write_footer()
        self.storage.flush()
        if self.storage.size() > self._next + SECTOR:
            self.storage.truncate(self._next + SECTOR)
            self.storage.flush()

    # The parent

    def parent_names(self) -> Iterator[str]:
        """Yield the names under which the parent may be found, the best first."""
        for wanted in (b"W2ru", b"Wi2r", b"W2ku", b"Wi2k", b"MacX"):
            for code, _, length, offset in self.header.locators:
                if code == wanted:
                    yield _local_name(self._locator(code, offset, length), code)
        if self.header.parent_name:
            yield _local_name(self.header.parent_name, b"W2ku")

    def _locator(self, code: bytes, offset: int, length: int) -> str:
        if length > _LONGEST_LOCATOR:
            raise CorruptImage(f"a parent locator of {length} bytes")
        data = read_exactly(self.storage, offset, length, "a parent locator")
        if code == b"MacX":
            return urllib.parse.unquote(data.decode("utf-8", "replace").rstrip("\0"))
        if code in {b"Wi2r", b"Wi2k"} and b"\0" not in data.rstrip(b"\0"):
            return data.rstrip(b"\0").decode("latin-1")
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


def parent_of(storage: Storage, name: str) -> Footer:
    """Return the footer of the disk ``name`` beside ``storage``. Raises UnsupportedImage."""
    with FileStorage(os.path.join(os.path.dirname(storage.name), name)) as file:
        footer, _ = find_footer(file)
    if footer is None:
        raise UnsupportedImage(
            "the parent of a VHD must itself be a VHD", hint="use qcow2 for other backing images"
        )
    return footer


def with_parent(storage: Storage, header: Header, name: str, place: int) -> tuple[Header, int]:
    """Write the parent's names from ``place`` on; return the header and where they end."""
    parent = parent_of(storage, name)
    absolute = os.path.abspath(os.path.join(os.path.dirname(storage.name), name))
    relative = name if not os.path.isabs(name) else os.path.basename(name)
    locators = []
    for code, data in (
        (b"W2ru", (".\\" + relative.replace("/", "\\")).encode("utf-16-le")),
        (b"W2ku", absolute.encode("utf-16-le")),
        (b"MacX", ("file://localhost" + urllib.parse.quote(absolute)).encode()),
    ):
        space = -(-len(data) // SECTOR) * SECTOR
        storage.pwrite(place, data.ljust(space, b"\0"))
        locators.append((code, space, len(data), place))
        place += space
    header = replace(
        header,
        parent_id=parent.id,
        parent_time=parent.timestamp,
        parent_name=os.path.basename(name),
        locators=tuple(locators),
    )
    return header, place
