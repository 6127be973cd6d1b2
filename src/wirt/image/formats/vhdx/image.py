"""An open VHDX disk."""

from __future__ import annotations

import os
import struct
from dataclasses import replace

from wirt.errors import CorruptImage, ImageAccessDenied
from wirt.image.base import Extent, ExtentKind, Image, ImageInfo, OpenOptions, Storage
from wirt.image.formats.mapped import (
    ResizableBlockImage,
    read_exactly,
    read_metadata,
    run_of_bits,
    stored_size,
)
from wirt.image.formats.vhdx.log import LoggedStorage, read_log, replay_into
from wirt.image.formats.vhdx.structures import (
    BAT_REGION,
    HEADER_OFFSETS,
    METADATA_REGION,
    MIB,
    REGION_OFFSETS,
    Metadata,
    current_header,
    pack_regions,
    refuse_other,
    regions,
)

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


class VhdxImage(ResizableBlockImage):
    format_name = "vhdx"

    def __init__(self, storage: Storage, options: OpenOptions) -> None:
        super().__init__()
        refuse_other(storage)
        self.storage = storage
        self.writable = options.writable
        self._fresh = True
        self.header, self._slot = current_header(storage)
        self.dirty = any(self.header.log_id)
        if self.dirty:
            self._replay(options)
        found = regions(self.storage)
        self._bat_region, self._metadata_region = found[BAT_REGION], found[METADATA_REGION]
        self.metadata = Metadata.read(self.storage, self._metadata_region, options.budget)
        self.virtual_size = self.metadata.virtual_size
        self.block_size = self.metadata.block_size
        self._ratio = _CHUNK_SECTORS * self.metadata.sector_size // self.block_size
        self._table = self._read_table(options)
        self._bits: dict[int, str] = {}
        self._next = self._end_of_use()

    def _replay(self, options: OpenOptions) -> None:
        replay = read_log(self.storage, self.header, options.budget)
        if not self.writable:
            self.storage = LoggedStorage(self.storage, replay)
            return
        replay_into(self.storage, replay)
        self._write_header(log_id=bytes(16))
        self.dirty = False

    def _write_header(self, **changes: bytes) -> None:
        """Write the header that is not current with the next number: it becomes current."""
        header = replace(self.header, sequence=self.header.sequence + 1, **changes)  # type: ignore[arg-type]  # all three are bytes
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

    def _end_of_use(self) -> int:
        end = self.header.log_offset + self.header.log_length
        for offset, length in (self._bat_region, self._metadata_region):
            end = max(end, offset + length)
        ratio = self._ratio
        for index, entry in enumerate(self._table):
            if entry & 7 in {PRESENT, PARTIAL}:
                size = MIB if index % (ratio + 1) == ratio else self.block_size
                end = max(end, (entry & _PLACE) + size)
        if self.writable and end > self.storage.size() + self.block_size:
            raise CorruptImage("blocks lie beyond the end of the file")
        return end

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
            self.storage.pwrite(self._table[slot] & _PLACE, content)
            place = self._table[slot] & _PLACE
        else:
            place = self._append(content, align=MIB)
        self._table[slot] = place | PRESENT

    def _zero(self, index: int) -> bool:
        slot = self._slot_of(index)
        if self._table[slot] & 7 in {PRESENT, PARTIAL}:
            return False
        self._table[slot] = ZERO
        return True

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._before_write()
        self._new_data_id()
        super().pwrite(offset, data)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self._before_write()
        self._new_data_id()
        super().write_zeroes(offset, length, unmap=unmap)

    def _new_data_id(self) -> None:
        """Give the disk a new id before its first change: children must not fit any more."""
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

    def resize(self, size: int, *, preallocation: str = "off") -> None:
        """Grow or shrink: the table moves to the end of the file where it has no room."""
        self._check_new_size(size, preallocation)
        if size % self.metadata.sector_size:
            raise CorruptImage(f"the size must be a multiple of {self.metadata.sector_size}")
        if size < self.virtual_size:
            self._drop_tail(size)
        self.flush()
        wanted = replace(self.metadata, virtual_size=size)
        count = table_entries(wanted)
        table = (self._table + [0] * max(0, count - len(self._table)))[:count]
        region = self._bat_region
        if 8 * count > region[1]:
            length = -(-8 * count // MIB) * MIB
            region = (-(-self._next // MIB) * MIB, length)
            self.storage.pwrite(region[0], struct.pack(f"<{count}Q", *table).ljust(length, b"\0"))
            self._next = region[0] + length
            self.storage.flush()
            for offset in REGION_OFFSETS:
                self.storage.pwrite(offset, pack_regions(region, self._metadata_region))
                self.storage.flush()
        else:
            self.storage.pwrite(region[0], struct.pack(f"<{count}Q", *table))
        self._bat_region, self._table = region, table
        self._write_metadata(wanted)

    def _drop_tail(self, size: int) -> None:
        """Make what is cut off read as zeros, should the disk grow again."""
        inside = -(-size // self.block_size) * self.block_size
        if size < min(inside, self.virtual_size):
            end = min(inside, self.virtual_size)
            super().write_zeroes(size, end - size)
        for index in range(inside // self.block_size, -(-self.virtual_size // self.block_size)):
            self._table[self._slot_of(index)] = ZERO

    def _write_metadata(self, metadata: Metadata) -> None:
        self.storage.pwrite(self._metadata_region[0], metadata.pack())
        self.storage.flush()
        self.metadata, self.virtual_size = metadata, metadata.virtual_size

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
