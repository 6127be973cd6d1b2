"""An open VHDX disk."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

from msgspec.structs import replace

from wirt.errors import CorruptImage, ImageAccessDenied, OutOfBounds, UnsupportedImage
from wirt.image.base import Extent, ExtentKind, Image, ImageInfo, OpenOptions, Storage
from wirt.image.formats.mapped import (
    CHECK_HINT,
    read_exactly,
    read_metadata,
    run_of_bits,
    stored_size,
)
from wirt.image.formats.table_check import Use
from wirt.image.formats.table_image import OverlayTable, ResizableTable
from wirt.image.formats.vhdx.log import (
    LoggedStorage,
    pack_entry,
    pages_of,
    read_log,
    replay_into,
)
from wirt.image.formats.vhdx.structures import (
    BAT_REGION,
    DISK_SIZE,
    FILE_PARAMETERS,
    HEADER_OFFSETS,
    METADATA_REGION,
    MIB,
    PARENT_LOCATOR,
    REGION_OFFSETS,
    SIGNATURE,
    Item,
    Metadata,
    current_header,
    pack_item_table,
    pack_locator,
    pack_regions,
    refuse_other,
    regions,
)
from wirt.image.storage.file import FileStorage

MAX_SIZE = 64 << 40
NOT_PRESENT, ZERO, PRESENT, PARTIAL = 0, 2, 6, 7
_CHUNK_SECTORS = 1 << 23
_PLACE = 0xFFFFFFFFFFF00000
_CACHED_BITMAPS = 64


def table_entries(metadata: Metadata) -> int:
    """Return how many BAT entries a disk needs, those of the sector bitmaps included."""
    blocks = -(-metadata.virtual_size // metadata.block_size)
    ratio = _CHUNK_SECTORS * metadata.sector_size // metadata.block_size
    if metadata.has_parent:
        return -(-blocks // ratio) * (ratio + 1)
    return blocks + max(0, blocks - 1) // ratio


class VhdxImage(ResizableTable, OverlayTable):
    format_name = "vhdx"
    _keeps_parent_id = True
    _align = _grid = MIB

    def __init__(self, storage: Storage, options: OpenOptions) -> None:
        super().__init__(storage, options)
        refuse_other(storage)
        self._fresh = True
        self.header, self._slot = current_header(storage)
        self.dirty = any(self.header.log_id)
        if self.dirty:
            self._replay(options)
        found = regions(self.storage)
        self._bat_region, self._metadata_region = found[BAT_REGION], found[METADATA_REGION]
        self._next_bat = self._bat_region
        self.metadata = Metadata.read(self.storage, self._metadata_region, options.budget)
        self.virtual_size = self.metadata.virtual_size
        self.block_size = self.metadata.block_size
        self._ratio = _CHUNK_SECTORS * self.metadata.sector_size // self.block_size
        self._table = self._read_table(options)
        self._bits: dict[int, str] = {}
        self._next = self._end_of_use(allow_dirty=options.allow_dirty)

    def _replay(self, options: OpenOptions) -> None:
        replay = read_log(self.storage, self.header, options.budget)
        if not self.writable:
            self.storage = LoggedStorage(self.storage, replay)
            return
        replay_into(self.storage, replay)
        self._write_header(log_id=bytes(16))
        self.dirty = False

    def _commit(self, changes: list[tuple[int, bytes]]) -> None:
        """Make changes to metadata through the log: all of them or none, whatever happens."""
        self.storage.flush()
        log_id, size = os.urandom(16), self.storage.size()
        pages = pages_of(self.storage, changes)
        entry = pack_entry(log_id, 1, pages, size)
        if len(entry) > self.header.log_length:
            raise UnsupportedImage("the log is too short for this change")
        self.storage.pwrite(self.header.log_offset, entry)
        self.storage.flush()
        self._write_header(log_id=log_id)
        for offset, page in pages.items():
            self.storage.pwrite(offset, page)
        self.storage.flush()
        self._write_header(log_id=bytes(16))

    def _write_header(self, **changes: bytes) -> None:
        """Write the header that is not current with the next number: it becomes current."""
        header = replace(self.header, sequence=self.header.sequence + 1, **changes)
        self._slot ^= 1
        self.storage.pwrite(HEADER_OFFSETS[self._slot], header.pack())
        self.storage.flush()
        self.header = header

    def _read_table(self, options: OpenOptions) -> list[int]:
        offset, length = self._bat_region
        count = table_entries(self.metadata)
        if 8 * count > length:
            raise CorruptImage(f"the block table has no room for {count} entries")
        raw = read_metadata(self.storage, offset, 8 * count, "the block table", options.budget)
        return list(struct.unpack(f"<{count}Q", raw))

    def _end_of_use(self, *, allow_dirty: bool) -> int:
        size = self.storage.size()
        end = max(use.end for use in self._metadata())
        places = [self._table[self._slot_of(index)] & _PLACE for index in self._allocated()]
        inside = max((place for place in places if place < size), default=0)
        if self.writable and max(places, default=0) > inside and not allow_dirty:
            raise CorruptImage("blocks lie beyond the end of the file", hint=CHECK_HINT)
        return max(end, inside + self.block_size if inside else 0)

    def _metadata(self) -> Iterator[Use]:
        yield Use(0, MIB, "the header")
        yield Use(self.header.log_offset, self.header.log_length, "the log")
        yield Use(*self._bat_region, "the block table")
        yield Use(*self._metadata_region, "the metadata")
        for chunk, slot in enumerate(range(self._ratio, len(self._table), self._ratio + 1)):
            if self._table[slot] & 7 == PRESENT:
                yield Use(self._table[slot] & _PLACE, MIB, f"sector bitmap {chunk}")

    def _place_of(self, index: int) -> int | None:
        entry = self._table[self._slot_of(index)]
        return entry & _PLACE if entry & 7 in {PRESENT, PARTIAL} else None

    def _is_set(self, index: int) -> bool:
        return self._table[self._slot_of(index)] & 7 != NOT_PRESENT

    def _point(self, index: int, place: int) -> None:
        self._table[self._slot_of(index)] = place | PRESENT

    def _forget(self, index: int) -> None:
        self._table[self._slot_of(index)] = NOT_PRESENT

    def _slot_of(self, index: int) -> int:
        """Return the table's entry of a block: every chunk has one more for its bitmap."""
        return index + index // self._ratio

    def _run(self, offset: int, limit: int) -> Extent:
        index, inside = divmod(offset, self.block_size)
        length = min(limit, self.block_size - inside)
        entry = self._table[self._slot_of(index)]
        state = entry & 7
        if state == NOT_PRESENT:
            return Extent(offset, length, ExtentKind.HOLE)
        if state not in {PRESENT, PARTIAL}:
            return Extent(offset, length, ExtentKind.ZERO)
        if state == PARTIAL:
            length, present = self._present(index, inside, length)
            if not present:
                return Extent(offset, length, ExtentKind.HOLE)
        place = (entry & _PLACE) + inside
        if place >= self.storage.size():
            raise CorruptImage(f"block {index} lies beyond the end of the file", offset=place)
        return Extent(offset, length, ExtentKind.DATA, storage=self.storage, storage_offset=place)

    def _present(self, index: int, inside: int, length: int) -> tuple[int, bool]:
        bits = self._bits.get(index)
        if bits is None:
            if len(self._bits) >= _CACHED_BITMAPS:
                self._bits.clear()
            bits = self._bits[index] = self._bitmap(index)
        sector = inside // self.metadata.sector_size
        end = run_of_bits(bits, sector) * self.metadata.sector_size
        return min(length, end - inside), bits[sector] == "1"

    def _bitmap(self, index: int) -> str:
        if not self.metadata.has_parent:
            raise CorruptImage(f"block {index} is partly a parent's, but there is none")
        chunk, number = divmod(index, self._ratio)
        entry = self._table[chunk * (self._ratio + 1) + self._ratio]
        if entry & 7 != PRESENT:
            raise CorruptImage(f"block {index} has no sector bitmap")
        count = self.block_size // self.metadata.sector_size
        at = (entry & _PLACE) + number * count // 8
        raw = read_exactly(self.storage, at, count // 8, "a sector bitmap")
        return format(int.from_bytes(raw, "little"), f"0{count}b")[::-1]

    def _store(self, index: int, content: bytes) -> None:
        slot = self._slot_of(index)
        if self._table[slot] & 7 == PARTIAL:
            # Until the entry says PRESENT the bitmap decides, and it stays as it is.
            place = self._table[slot] & _PLACE
            self.storage.pwrite(place, content)
            self._table[slot] = place | PRESENT
        else:
            super()._store(index, content)

    def _zero(self, index: int) -> bool:
        slot = self._slot_of(index)
        if self._table[slot] & 7 in {PRESENT, PARTIAL}:
            return False
        self._table[slot] = ZERO
        return True

    def _before_write(self) -> None:
        """Give the disk a new id before its first change: children must not fit any more."""
        super()._before_write()
        if self._fresh:
            self._fresh = False
            self._write_header(file_id=os.urandom(16), data_id=os.urandom(16))

    def _publish(self, indexes: list[int]) -> None:
        if self._next > self.storage.size():
            self.storage.truncate(-(-self._next // MIB) * MIB)
        for index in indexes:
            slot = self._slot_of(index)
            entry = struct.pack("<Q", self._table[slot])
            self.storage.pwrite(self._bat_region[0] + 8 * slot, entry)

    def _refuse_size(self, size: int) -> None:
        sector = self.metadata.sector_size
        if size % sector or not 0 < size <= MAX_SIZE:
            raise OutOfBounds(f"the size must be a multiple of {sector} bytes, at most 64 TiB")

    def _extend(self, blocks: int) -> None:
        first = self._block_count
        wanted = replace(self.metadata, virtual_size=blocks * self.block_size)
        self._lengthen(table_entries(wanted))
        if self.metadata.fixed:
            for index in range(first, blocks):
                self._store(index, bytes(self.block_size))

    def _lengthen(self, count: int) -> None:
        """Make the table ``count`` entries long; without room it will move to the file's end."""
        self._table += [0] * (count - len(self._table))
        self._next_bat = self._bat_region
        if 8 * count > self._bat_region[1]:
            place, length = -(-self._next // MIB) * MIB, -(-8 * count // MIB) * MIB
            self._next_bat = (place, length)
            self._next = place + length

    def _switch(self, size: int) -> None:
        changes = self._written_table() if size > self.metadata.virtual_size else []
        item = self.metadata.items[DISK_SIZE]
        self._commit([*changes, (item.offset, struct.pack("<Q", size))])
        self._bat_region = self._next_bat
        self.metadata = replace(self.metadata, virtual_size=size)

    def _written_table(self) -> list[tuple[int, bytes]]:
        """Write the table to its place and return what else must change if that is a new one."""
        place, length = self._next_bat
        if self.storage.size() < place + length:
            self.storage.truncate(place + length)
        self.storage.pwrite(place, struct.pack(f"<{len(self._table)}Q", *self._table))
        if self._next_bat == self._bat_region:
            return []
        table = pack_regions(self._next_bat, self._metadata_region)
        return [(offset, table) for offset in REGION_OFFSETS]

    def _cut(self, blocks: int) -> None:
        del self._table[table_entries(self.metadata) :]

    def set_backing(self, name: str | None, backing_format: str | None) -> None:
        self._before_write()
        if self.metadata.fixed:
            raise UnsupportedImage("a fixed VHDX disk has no parent")
        locator = {} if name is None else locator_of(self.storage, name)[1]
        if name is None:
            self._complete_blocks()
        self.flush()
        wanted = replace(self.metadata, has_parent=name is not None, locator=locator)
        self._lengthen(table_entries(wanted))
        changes = [*self._written_table(), *self._changed_items(wanted)]
        self._commit(changes)
        self._bat_region = self._next_bat
        options = OpenOptions()
        self.metadata = Metadata.read(self.storage, self._metadata_region, options.budget)

    def _complete_blocks(self) -> None:
        """Store whole what is partly the parent's."""
        for index in range(self._block_count):
            if self._table[self._slot_of(index)] & 7 == PARTIAL:
                start = index * self.block_size
                self._store(index, self._overlaid(index, start, memoryview(b"")))
                self._unpublished.add(index)

    def _changed_items(self, wanted: Metadata) -> list[tuple[int, bytes]]:
        """Return the changes that make the file's items say what ``wanted`` does of the parent."""
        region, length = self._metadata_region
        items = dict(self.metadata.items)
        changes = [(items[FILE_PARAMETERS].offset, wanted.parameters())]
        old = items.pop(PARENT_LOCATOR, None)
        if wanted.has_parent:
            data = pack_locator(wanted.locator)
            end = -(-max(item.offset + item.length for item in items.values()) // 8) * 8
            place = old.offset if old is not None and len(data) <= old.length else end
            if old is not None and place == end:
                place = max(end, -(-(old.offset + old.length) // 8) * 8)
            if place + len(data) > region + length:
                raise OutOfBounds("the metadata region has no room for the parent's names")
            items[PARENT_LOCATOR] = Item(place, len(data), 4)
            changes.append((place, data))
        return [*changes, (region, pack_item_table(items, region))]

    def parent_names(self) -> list[str]:
        """Return the names under which the parent may be found, the best first."""
        names = []
        for key in ("relative_path", "volume_path", "absolute_win32_path"):
            name = self.metadata.locator.get(key, "").replace("\\", "/")
            if name and (key != "relative_path" or ":" in name):
                name = name.rsplit("/", 1)[-1]
            if name:
                names.append(name.removeprefix("./"))
        return list(dict.fromkeys(names))

    def info(self) -> ImageInfo:
        kind = "fixed" if self.metadata.fixed else "dynamic"
        names = self.parent_names() if self.metadata.has_parent else []
        return ImageInfo(
            "vhdx",
            self.virtual_size,
            stored_size(self.storage),
            self.block_size,
            backing_name=names[0] if names else "",
            backing_format="vhdx" if names else "",
            dirty=self.dirty,
            specific={
                "subformat": "differencing" if self.metadata.has_parent else kind,
                "logical-sector-size": self.metadata.sector_size,
            },
        )


def locator_of(storage: Storage, name: str) -> tuple[VhdxImage, dict[str, str]]:
    """Return the disk ``name`` beside ``storage`` (closed), and a locator that leads to it."""
    path = os.path.join(os.path.dirname(storage.name), name)
    with FileStorage(path) as file:
        if file.pread(0, 8) != SIGNATURE:
            raise UnsupportedImage(
                "the parent of a VHDX must itself be a VHDX",
                hint="use qcow2 for other backing images",
            )
        parent = VhdxImage(file, OpenOptions(with_backing=False))
    local = name if not os.path.isabs(name) else os.path.basename(name)
    return parent, {
        "parent_linkage": f"{{{data_id_text(parent)}}}",
        "relative_path": ".\\" + local.replace("/", "\\"),
        "absolute_win32_path": os.path.abspath(path),
    }


def open_parent(image: VhdxImage, options: OpenOptions) -> Image:
    """Open the parent that the locator names and check that it is the right one."""
    names = image.parent_names()
    if options.related is None:
        raise ImageAccessDenied(f"the image needs its parent {names[:1]}")
    parent = options.related.image(names, format="vhdx")
    linked = [image.metadata.locator.get(key, "") for key in ("parent_linkage", "parent_linkage2")]
    wanted = {text.strip("{}").lower() for text in linked if text}
    if not isinstance(parent, VhdxImage) or data_id_text(parent) not in wanted:
        parent.close()
        raise CorruptImage(
            "the parent is not the disk that this one was made from, or was changed since",
            hint="find the parent whose data id the image holds",
        )
    return parent


def data_id_text(image: VhdxImage) -> str:
    import uuid

    return str(uuid.UUID(bytes_le=image.header.data_id))
