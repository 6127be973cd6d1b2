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
from collections.abc import Mapping
from dataclasses import dataclass, replace

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
    SECTOR,
    ResizableBlockImage,
    read_exactly,
    read_metadata,
    refuse_unknown,
    stored_size,
)
from wirt.image.storage.file import FileStorage

DYNAMIC, STATIC, DIFFERENCING = 1, 2, 4
_SIGNATURE = 0xBEDA107F
_HEADER = struct.Struct("<64sIIIII256sIIIIIIIQIIII16s16s16s16s")
_NOT_ALLOCATED, _ZERO = 0xFFFFFFFF, 0xFFFFFFFE
_TEXT = b"<<< Oracle VM VirtualBox Disk Image >>>\n"
_MIB = 1 << 20
_MAX_BLOCKS = 0x3FFFFFFF
_PARENT = b"parent="


@dataclass(frozen=True, slots=True)
class Header:
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


class VdiImage(ResizableBlockImage):
    format_name = "vdi"

    def __init__(self, storage: Storage, options: OpenOptions) -> None:
        super().__init__()
        self.storage = storage
        self.writable = options.writable
        self._fresh = True
        self.header = Header.parse(storage.pread(0, 512))
        self.virtual_size = self.header.size // SECTOR * SECTOR
        self.block_size = self.header.block_size
        count = self.header.blocks
        offset = self.header.map_offset
        raw = read_metadata(storage, offset, 4 * count, "the block map", options.budget)
        self._map = list(struct.unpack(f"<{count}I", raw))
        used = [number for number in self._map if number < _ZERO]
        end = self.header.data_offset + (max(used, default=-1) + 1) * self.block_size
        if self.writable and end > storage.size() + self.block_size:
            raise CorruptImage("blocks lie beyond the end of the file")
        self._next = end

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

    def _store(self, index: int, content: bytes) -> None:
        place = self._next
        self.storage.pwrite(place, content)
        self._next = place + self.block_size
        self._map[index] = (place - self.header.data_offset) // self.block_size

    def _zero(self, index: int) -> bool:
        if self._map[index] < _ZERO:
            return False
        self._map[index] = _ZERO
        return True

    def _publish(self, indexes: list[int]) -> None:
        for index in indexes:
            entry = struct.pack("<I", self._map[index])
            self.storage.pwrite(self.header.map_offset + 4 * index, entry)
        self._write_header()

    def _write_header(self, **changes: int | bytes) -> None:
        allocated = sum(number < _ZERO for number in self._map)
        self.header = replace(self.header, allocated=allocated, **changes)  # type: ignore[arg-type]  # each value has its field's type
        self.storage.pwrite(0, self.header.pack())

    def _before_write(self) -> None:
        """Give the disk a new change id before its first change: children must not fit."""
        super()._before_write()
        if self._fresh:
            self._fresh = False
            self._write_header(change_id=uuid.uuid4().bytes_le)
            self.storage.flush()

    def resize(self, size: int, *, preallocation: str = "off") -> None:
        """Grow or shrink. Where the map has no room, the first blocks move to the end.

        A power cut while the map of such a grown disk is written leaves it inconsistent.
        """
        self._check_new_size(size, preallocation)
        if self.header.kind != DYNAMIC:
            raise UnsupportedImage("only dynamic VDI disks can be resized")
        if size < self.virtual_size:
            self._cut(size)
        self.flush()
        count = -(-size // self.block_size)
        grown = (self._map + [_NOT_ALLOCATED] * max(0, count - len(self._map)))[:count]
        self._make_room(4 * count, grown)
        self._map = grown
        self.storage.pwrite(self.header.map_offset, struct.pack(f"<{count}I", *grown))
        self._write_header(size=size, blocks=count)
        self.storage.flush()
        self.virtual_size = size

    def _cut(self, size: int) -> None:
        end = min(self.virtual_size, -(-size // self.block_size) * self.block_size)
        if size < end:
            self.write_zeroes(size, end - size, unmap=False)

    def _make_room(self, needed: int, table: list[int]) -> None:
        """Move blocks out of the way until the map ends before the data area."""
        room = self.header.data_offset - self.header.map_offset
        if needed <= room:
            return
        blocks = -(-(needed - room) // self.block_size)
        for index, number in enumerate(table):
            if number < blocks:
                place = self.header.data_offset + number * self.block_size
                content = self.storage.pread(place, self.block_size)
                self._store(index, content.ljust(self.block_size, b"\0"))
                table[index] = self._map[index]
        shift = blocks * self.block_size
        for index, number in enumerate(table):
            if number < _ZERO:
                table[index] = number - blocks
        self.storage.flush()
        self.header = replace(self.header, data_offset=self.header.data_offset + shift)
        self._next = max(self._next, self.header.data_offset)

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
