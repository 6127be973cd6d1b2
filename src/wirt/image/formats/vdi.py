"""vdi: disks of VirtualBox.

There is no specification; the layout is that of VirtualBox's ``VDICore.h``. Little-endian.

::

    0    text, 64 bytes         64 signature 0xBEDA107F      68 version 0x00010001
    72   header size (400)      76 type: 1 dynamic 2 static 3 undo 4 differencing   80 flags
    340  offset of the map     344 offset of the data       368 disk size
    376  block size            380 extra bytes per block    384 blocks    388 allocated
    392  id                    408 id of the last change    424 parent's id 440 its last change
    map  u32 of each block: its number in the data area; all ones: not allocated (the
         parent's in a differencing disk); all ones less one: zeros

A differencing disk does not name its parent's file: VirtualBox keeps names in its settings.
wirt looks beside it for the name given in ``backing_file`` if the disk was made here (kept
in the comment field as ``parent=NAME``), then for ``{id}.vdi``, as VirtualBox calls snapshots.
"""

from __future__ import annotations

import os
import struct
import uuid
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
    read_metadata,
    refuse_unknown,
    stored_size,
)
from wirt.image.formats.table_check import Use
from wirt.image.formats.table_image import OverlayTable, ResizableTable
from wirt.image.storage.file import FileStorage

DYNAMIC, STATIC, DIFFERENCING = 1, 2, 4
_SIGNATURE = 0xBEDA107F
_HEADER = struct.Struct("<64sIIIII256sIIIIIIIQIIII16s16s16s16s")
_NOT_ALLOCATED, _ZERO = 0xFFFFFFFF, 0xFFFFFFFE
_TEXT = b"<<< Oracle VM VirtualBox Disk Image >>>\n"
_MIB = 1 << 20
_MAX_BLOCKS = 0x3FFFFFFF
_ENTRIES_OF_SECTOR = 128
_PARENT = b"parent="


class Header(msgspec.Struct, frozen=True):
    kind: int
    size: int
    map_offset: int
    data_offset: int
    block_size: int
    blocks: int
    allocated: int
    id: bytes
    change_id: bytes
    parent_id: bytes = bytes(16)
    parent_change_id: bytes = bytes(16)
    comment: bytes = b""

    @classmethod
    def parse(cls, data: bytes) -> Header:
        if len(data) < 512 or data[64:68] != _SIGNATURE.to_bytes(4, "little"):
            raise NotThisFormat("there is no VDI signature")
        f = _HEADER.unpack_from(data)
        if f[2] >> 16 != 1:
            raise UnsupportedImage(f"VDI version {f[2] >> 16} is not known")
        header = cls(
            f[4], f[14], f[7], f[8], f[15], f[17], f[18], f[19], f[20], f[21], f[22],
            f[6].split(b"\0")[0],
        )  # fmt: skip
        if f[16] or header.block_size < SECTOR or header.block_size & (header.block_size - 1):
            raise UnsupportedImage(f"blocks of {header.block_size} + {f[16]} bytes")
        if header.kind not in {DYNAMIC, STATIC, DIFFERENCING}:
            raise UnsupportedImage(f"VDI type {header.kind} is not supported")
        if header.blocks * header.block_size < header.size or header.blocks > _MAX_BLOCKS:
            raise CorruptImage(f"{header.blocks} blocks do not hold {header.size} bytes")
        return header

    def pack(self) -> bytes:
        data = _HEADER.pack(
            _TEXT, _SIGNATURE, 0x10001, 400, self.kind, 0, self.comment, self.map_offset,
            self.data_offset, 0, 0, 0, SECTOR, 0, self.size, self.block_size, 0, self.blocks,
            self.allocated, self.id, self.change_id, self.parent_id, self.parent_change_id,
        )  # fmt: skip
        return data.ljust(512, b"\0")


class VdiImage(ResizableTable, OverlayTable):
    """VirtualBox and QEMU put a new block behind as many as the header counts: so it counts
    up to the last one in use, and blocks have no gaps between them.
    """

    format_name = "vdi"
    _keeps_parent_id = True
    _align = SECTOR

    def __init__(self, storage: Storage, options: OpenOptions) -> None:
        super().__init__(storage, options)
        self._fresh = True
        self.header = Header.parse(storage.pread(0, 512))
        self._layout = (self.header.map_offset, self.header.data_offset)
        self.virtual_size = self.header.size // SECTOR * SECTOR
        self.block_size = self.header.block_size
        count = self.header.blocks
        offset = self.header.map_offset
        raw = read_metadata(storage, offset, 4 * count, "the block map", options.budget)
        self._map: list[int] = list(struct.unpack(f"<{count}I", raw))
        if self.writable:
            self._find_room(allow_dirty=options.allow_dirty)

    def _find_room(self, *, allow_dirty: bool) -> None:
        size = self.storage.size()
        limit = max(0, -(-(size - self.header.data_offset) // self.block_size))
        used = {number for number in self._map if number < _ZERO}
        if max(used, default=-1) > limit and not allow_dirty:
            raise CorruptImage("blocks lie beyond the end of the file", hint=CHECK_HINT)
        inside = {number for number in used if number <= limit}
        self._next = self.header.data_offset + (max(inside, default=-1) + 1) * self.block_size
        self._gaps = sorted(set(range(max(inside, default=0))) - inside, reverse=True)

    def _run(self, offset: int, limit: int) -> Extent:
        index, inside = divmod(offset, self.block_size)
        length = min(limit, self.block_size - inside)
        number = self._map[index]
        if number == _NOT_ALLOCATED:
            return Extent(offset, length, ExtentKind.HOLE)
        if number == _ZERO:
            return Extent(offset, length, ExtentKind.ZERO)
        place = self.header.data_offset + number * self.block_size + inside
        if place >= self.storage.size():
            raise CorruptImage(f"block {index} lies beyond the end of the file", offset=place)
        return Extent(offset, length, ExtentKind.DATA, storage=self.storage, storage_offset=place)

    def _place_of(self, index: int) -> int | None:
        number = self._map[index]
        return self.header.data_offset + number * self.block_size if number < _ZERO else None

    def _is_set(self, index: int) -> bool:
        return self._map[index] != _NOT_ALLOCATED

    def _point(self, index: int, place: int) -> None:
        number = (place - self.header.data_offset) // self.block_size
        if number >= _ZERO:
            raise OutOfBounds("the file cannot grow further")
        self._map[index] = number

    def _forget(self, index: int) -> None:
        self._map[index] = _NOT_ALLOCATED

    def _new_place(self, index: int) -> int:
        first, size = self.header.data_offset, self.block_size
        if self._gaps:
            number = self._gaps.pop()
        else:
            number = -(-(self._next - first) // size)
            self._next = first + (number + 1) * size
        place = first + number * size
        self._point(index, place)
        if self.storage.size() < place + size:
            self.storage.truncate(place + size)
        return place

    def _zero(self, index: int) -> bool:
        if self._map[index] < _ZERO:
            return False
        self._map[index] = _ZERO
        return True

    def _metadata(self) -> Iterator[Use]:
        yield Use(0, SECTOR, "the header")
        length = self.header.data_offset - self.header.map_offset
        yield Use(self.header.map_offset, length, "the block map")

    def _own_faults(self) -> list[str]:
        count = sum(number < _ZERO for number in self._map)
        if count == self.header.allocated:
            return []
        return [f"the header counts {self.header.allocated} blocks, the map {count}"]

    def _repair(self, *, everything: bool) -> None:
        super()._repair(everything=everything)
        faults = self._faults()
        if not faults.beyond + faults.shared:
            self._tighten()

    def _publish(self, indexes: list[int]) -> None:
        # Counted first: another writer must not take a place that the map names already.
        self._write_header(at_least=self.header.allocated)
        self.storage.flush()
        for page in sorted({index // _ENTRIES_OF_SECTOR for index in indexes}):
            start = page * _ENTRIES_OF_SECTOR
            # A map that is about to grow is longer than its place in the file.
            entries = self._map[start : min(start + _ENTRIES_OF_SECTOR, self.header.blocks)]
            place = self.header.map_offset + 4 * start
            self.storage.pwrite(place, struct.pack(f"<{len(entries)}I", *entries))
        self.storage.flush()
        self._write_header()

    def _write_header(self, *, at_least: int = 0, **changes: int | bytes) -> None:
        used = (self._next - self.header.data_offset) // self.block_size
        header = replace(self.header, allocated=max(used, at_least), **changes)
        if header != self.header:
            self.header = header
            self.storage.pwrite(0, header.pack())

    def _before_write(self) -> None:
        """Give the disk a new change id before its first change: children must not fit."""
        super()._before_write()
        if self._fresh:
            self._fresh = False
            self._write_header(change_id=uuid.uuid4().bytes_le)
            self.storage.flush()

    def _refuse_size(self, size: int) -> None:
        if self.header.kind == STATIC:
            raise UnsupportedImage("a static VDI disk cannot be resized", hint="convert it")
        if -(-size // self.block_size) > _MAX_BLOCKS:
            raise OutOfBounds("a VDI disk cannot be as large as this")

    def _extend(self, blocks: int) -> None:
        """Make room for a longer map. Where there is none, the first blocks move to the end:
        then the new map lies in their place, and one sector switches to it.
        """
        header = self.header
        self._layout = (header.map_offset, header.data_offset)
        self._map += [_NOT_ALLOCATED] * (blocks - len(self._map))
        if 4 * blocks > header.data_offset - header.map_offset:
            room = -(-4 * blocks // self.block_size)
            self._leave(room)
            self._layout = (header.data_offset, header.data_offset + room * self.block_size)

    def _leave(self, room: int) -> None:
        """Move every block off the first ``room`` places, durably."""
        self._gaps = [number for number in self._gaps if number >= room]
        self._next = max(self._next, self.header.data_offset + room * self.block_size)
        for index, number in enumerate(self._map):
            if number < room:
                place = self.header.data_offset + number * self.block_size
                content = self.storage.pread(place, self.block_size)
                self._store(index, content.ljust(self.block_size, b"\0"))
                self._unpublished.add(index)
        old = [index for index in self._unpublished if index < self.header.blocks]
        self.storage.flush()
        self._publish(old)
        self.storage.flush()

    def _switch(self, size: int) -> None:
        count = -(-size // self.block_size)
        if size > self.header.size:
            self._move_map(count)
        used = (self._next - self.header.data_offset) // self.block_size
        self.header = replace(self.header, size=size, blocks=count, allocated=used)
        self.storage.pwrite(0, self.header.pack())
        self.storage.flush()

    def _move_map(self, count: int) -> None:
        """Write the map of ``count`` blocks to its new place; the header does not say so yet."""
        at, data = self._layout
        shift = (data - self.header.data_offset) // self.block_size
        self._map = [number - shift if number < _ZERO else number for number in self._map]
        self._gaps = [number - shift for number in self._gaps]
        self.storage.pwrite(at, struct.pack(f"<{count}I", *self._map))
        self.storage.flush()
        self.header = replace(self.header, map_offset=at, data_offset=data)

    def _cut(self, blocks: int) -> None:
        del self._map[blocks:]
        self._tighten()

    def _tighten(self) -> None:
        """Move the last blocks into the gaps before them, and count them anew."""
        self._find_room(allow_dirty=True)
        by_number = {number: index for index, number in enumerate(self._map) if number < _ZERO}
        while self._gaps:
            last = max(by_number)
            index = by_number.pop(last)
            place = self.header.data_offset + last * self.block_size
            content = self.storage.pread(place, self.block_size).ljust(self.block_size, b"\0")
            by_number[self._gaps[-1]] = index
            self._store(index, content)
            self._unpublished.add(index)
            self._gaps = [number for number in self._gaps if number < max(by_number)]
        self.flush()
        self._find_room(allow_dirty=True)
        self._write_header()
        self.storage.flush()

    def make_empty(self) -> None:
        super().make_empty()
        self._tighten()

    def set_backing(self, name: str | None, backing_format: str | None) -> None:
        self._before_write()
        self.flush()
        if self.header.kind == STATIC:
            raise UnsupportedImage("a static VDI disk has no parent")
        header = replace(
            self.header, kind=DYNAMIC, parent_id=bytes(16), parent_change_id=bytes(16), comment=b""
        )
        if name is not None:
            header = _child_of(self.storage, name, header)
        self.header = header
        self.storage.pwrite(0, header.pack())
        self.storage.flush()

    def parent_names(self) -> list[str]:
        if self.header.kind != DIFFERENCING:
            return []
        text = uuid.UUID(bytes_le=self.header.parent_id)
        names = [f"{{{text}}}.vdi"]
        if self.header.comment.startswith(_PARENT):
            names.insert(0, os.fsdecode(self.header.comment.removeprefix(_PARENT)))
        return names

    def info(self) -> ImageInfo:
        kinds = {DYNAMIC: "dynamic", STATIC: "static", DIFFERENCING: "differencing"}
        names = self.parent_names()
        return ImageInfo(
            "vdi",
            self.virtual_size,
            stored_size(self.storage),
            self.block_size,
            backing_name=names[0] if names else "",
            backing_format="vdi" if names else "",
            specific={"subformat": kinds[self.header.kind]},
        )


def _open_parent(image: VdiImage, options: OpenOptions) -> Image:
    names = image.parent_names()
    if options.related is None:
        raise ImageAccessDenied(f"the image needs its parent {names[:1]}")
    parent = options.related.image(names, format="vdi")
    if not isinstance(parent, VdiImage) or parent.header.id != image.header.parent_id:
        parent.close()
        raise CorruptImage("the parent is not the disk that this one was made from")
    if parent.header.change_id != image.header.parent_change_id:
        parent.close()
        raise CorruptImage("the parent was changed after this disk was made from it")
    return parent


class VdiFormat(Format):
    name = "vdi"
    suffixes = (".vdi",)
    images = (VdiImage,)
    has_backing = True

    def probe(self, storage: Storage) -> bool:
        return storage.pread(64, 4) == _SIGNATURE.to_bytes(4, "little")

    def open(self, storage: Storage, options: OpenOptions) -> Image:
        image = VdiImage(storage, options)
        if image.header.kind == DIFFERENCING and options.with_backing:
            image.backing = _open_parent(image, options)
        return image

    def create(self, storage: Storage, size: int, options: Mapping[str, str]) -> None:
        """Options: ``static`` (on, off), ``backing_file`` (a differencing disk)."""
        refuse_unknown(options, "static", "backing_file", "backing_fmt")
        static = options.get("static", "off")
        if static not in {"on", "off"}:
            raise UsageError(f"Invalid parameter '{static}'", hint="static: on or off")
        size = -(-size // SECTOR) * SECTOR
        parent = options.get("backing_file", "")
        header = Header(
            STATIC if static == "on" else DYNAMIC, size, 512, 0, _MIB, 0, 0,
            uuid.uuid4().bytes_le, uuid.uuid4().bytes_le,
        )  # fmt: skip
        if parent:
            header = _child_of(storage, parent, header)
        _write(storage, header)


def _child_of(storage: Storage, name: str, header: Header) -> Header:
    with FileStorage(os.path.join(os.path.dirname(storage.name), name)) as file:
        if not FORMAT.probe(file):
            raise UnsupportedImage("the parent of a VDI must itself be a VDI")
        parent = Header.parse(read_exactly(file, 0, 512, "the parent's header"))
    comment = _PARENT + os.fsencode(name)
    if len(comment) > 255:
        raise UsageError("the name of the parent is too long for a VDI")
    return replace(
        header,
        kind=DIFFERENCING,
        size=header.size or parent.size,
        parent_id=parent.id,
        parent_change_id=parent.change_id,
        comment=comment,
    )


def _write(storage: Storage, header: Header) -> None:
    blocks = -(-header.size // _MIB)
    if blocks > _MAX_BLOCKS:
        raise OutOfBounds("a VDI disk cannot be larger than 1 PiB")
    static = header.kind == STATIC
    data = -(-(header.map_offset + 4 * blocks) // _MIB) * _MIB
    header = replace(header, blocks=blocks, data_offset=data, allocated=blocks if static else 0)
    numbers = range(blocks) if static else [_NOT_ALLOCATED] * blocks
    storage.pwrite(0, header.pack() + struct.pack(f"<{blocks}I", *numbers))
    storage.truncate(data + (blocks * _MIB if static else 0))


FORMAT = VdiFormat()
