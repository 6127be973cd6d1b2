"""An open VMDK disk: its extents, one behind the other."""

from __future__ import annotations

import bisect
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from wirt.errors import CorruptImage, ImageAccessDenied, OutOfBounds, UnsupportedImage
from wirt.image.base import Extent, ExtentKind, Image, ImageInfo, OpenOptions, Storage
from wirt.image.formats.mapped import SECTOR, BlockImage, read_exactly, stored_size, verbatim
from wirt.image.formats.vmdk.descriptor import (
    MAX_DESCRIPTOR,
    NO_PARENT,
    Descriptor,
    ExtentLine,
    parse_descriptor,
    replaced_cid,
)
from wirt.image.formats.vmdk.sparse import COWD, KDMV, SparseExtent, SparseHeader

_SPARSE = {"SPARSE", "VMFSSPARSE"}
_FLAT = {"FLAT", "VMFS"}


@dataclass(slots=True)
class Part:
    """One extent of the disk: flat (a storage), sparse, or zeros."""

    start: int
    length: int
    storage: Storage | None = None
    place: int = 0
    sparse: SparseExtent | None = None


class VmdkImage(BlockImage):
    format_name = "vmdk"

    def __init__(self, storage: Storage, options: OpenOptions) -> None:
        super().__init__()
        self.storage = storage
        self.writable = options.writable
        self._fresh = True
        self._text_place, self._text = _find_descriptor(storage)
        self.parts: list[Part] = []
        self._files: list[Storage] = []
        self.descriptor = _descriptor_of(self._text)
        try:
            self._open_parts(options)
        except BaseException:
            self._close_files()
            raise
        self._starts = [part.start for part in self.parts]
        grains = {part.sparse.grain for part in self.parts if part.sparse is not None}
        if len(grains) > 1:
            self._close_files()
            raise UnsupportedImage("the extents have grains of different sizes")
        self.block_size = grains.pop() if grains else 64 << 10

    def _open_parts(self, options: OpenOptions) -> None:
        lines: Sequence[ExtentLine] = self.descriptor.extents
        embedded = self.storage.pread(0, 4) in {KDMV, COWD}
        if embedded:
            part = SparseExtent(self.storage, options.budget, writable=self.writable)
            self.parts = [Part(0, part.length, sparse=part)]
        elif not lines:
            raise CorruptImage("the descriptor names no extents")
        for line in () if embedded else lines:
            start = self.parts[-1].start + self.parts[-1].length if self.parts else 0
            self.parts.append(self._part(line, start, options))
        last = self.parts[-1]
        self.virtual_size = last.start + last.length
        if self.virtual_size > 1 << 53:
            raise OutOfBounds("the extents are longer than any disk")

    def _part(self, line: ExtentLine, start: int, options: OpenOptions) -> Part:
        length = line.sectors * SECTOR
        if line.kind == "ZERO":
            return Part(start, length)
        if line.access == "NOACCESS" or line.kind not in _SPARSE | _FLAT:
            raise UnsupportedImage(f"VMDK extents of kind {line.kind} are not supported")
        file = self._file(line.file, options)
        if line.kind in _FLAT:
            return Part(start, length, file, line.offset * SECTOR)
        sparse = SparseExtent(file, options.budget, writable=self.writable)
        if sparse.length < length:
            raise CorruptImage(f"the extent {line.file[:60]!r} is shorter than declared")
        return Part(start, length, sparse=sparse)

    def _file(self, name: str, options: OpenOptions) -> Storage:
        if options.related is None:
            raise ImageAccessDenied(f"the image needs its extent {name[:200]!r}")
        file = options.related.storage(name, role="extent")
        self._files.append(file)
        return file

    def _close_files(self) -> None:
        for file in self._files:
            file.close()

    def _part_at(self, offset: int) -> Part:
        return self.parts[bisect.bisect_right(self._starts, offset) - 1]

    def _run(self, offset: int, limit: int) -> Extent:
        part = self._part_at(offset)
        inside = offset - part.start
        limit = min(limit, part.length - inside)
        if part.sparse is not None:
            return replace(part.sparse.run(inside, limit), offset=offset)
        if part.storage is None:
            return Extent(offset, limit, ExtentKind.ZERO)
        return verbatim(offset, limit, part.storage, part.place + inside)

    def _read_packed(self, offset: int, length: int) -> bytes:
        parts = []
        while length:
            part = self._part_at(offset)
            step = min(length, part.start + part.length - offset)
            if part.sparse is None:
                raise CorruptImage("a flat extent is not compressed")
            parts.append(part.sparse.read_packed(offset - part.start, step))
            offset += step
            length -= step
        return b"".join(parts)

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        self._check(offset, len(view))
        self._before_write()
        while view:
            part = self._part_at(offset)
            step = min(len(view), part.start + part.length - offset)
            self._write_to(part, offset, view[:step])
            offset += step
            view = view[step:]

    def _write_to(self, part: Part, offset: int, view: memoryview) -> None:
        if part.sparse is not None:
            super().pwrite(offset, view)
        elif part.storage is not None:
            part.storage.pwrite(part.place + offset - part.start, view)
        else:
            raise UnsupportedImage("a ZERO extent cannot be written", offset=offset)

    def _write_part(self, index: int, offset: int, part: memoryview) -> None:
        owner = self._part_at(offset)
        if owner.sparse is None:
            self._write_to(owner, offset, part)
            return
        super()._write_part(index, offset, part)

    def _store(self, index: int, content: bytes) -> None:
        part = self._part_at(index * self.block_size)
        if part.sparse is None or part.start % self.block_size:
            raise UnsupportedImage("an extent does not begin on a grain: it can only be read")
        part.sparse.store(index * self.block_size - part.start, content)

    def _zero(self, index: int) -> bool:
        part = self._part_at(index * self.block_size)
        if part.sparse is None or part.start % self.block_size:
            return False
        return part.sparse.zero(index * self.block_size - part.start)

    def _publish(self, indexes: list[int]) -> None:
        for part in self.parts:
            if part.sparse is not None:
                part.sparse.storage.flush()
                part.sparse.publish()

    def _before_write(self) -> None:
        """Give the disk a new CID before its first change: children must not fit any more."""
        super()._before_write()
        if self._fresh and self._text:
            self._fresh = False
            cid = int.from_bytes(os.urandom(4)) % 0xFFFFFFFE
            text = replaced_cid(self._text, cid)
            self.storage.pwrite(self._text_place, text)
            self.descriptor = _descriptor_of(text)
            self._text = text

    def flush(self) -> None:
        super().flush()
        for file in self._files:
            file.flush()

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._close_files()

    def info(self) -> ImageInfo:
        size = sum(stored_size(file) for file in (self.storage, *self._files))
        name = self.descriptor.parent_name if self.has_parent else ""
        return ImageInfo(
            "vmdk",
            self.virtual_size,
            size,
            self.block_size,
            backing_name=name,
            backing_format="vmdk" if name else "",
            specific={
                "create-type": self.descriptor.create_type,
                "cid": self.descriptor.cid,
                "parent-cid": self.descriptor.parent_cid,
                "extents": [self._describe(part) for part in self.parts],
            },
        )

    def _describe(self, part: Part) -> dict[str, object]:
        """What ``info`` tells of an extent, with QEMU's keys."""
        storage = part.storage if part.sparse is None else part.sparse.storage
        name = "" if storage is None else storage.name
        described: dict[str, object] = {"virtual-size": part.length, "filename": name}
        kind = self._kind_of(part)
        if part.sparse is None:
            return described | {"format": kind}
        described["cluster-size"] = part.sparse.grain
        if part.sparse.compressed:
            described["compressed"] = True
        return described | {"format": kind}

    def _kind_of(self, part: Part) -> str:
        """Return the extent's kind as the descriptor has it; of one inside the file, nothing."""
        lines = self.descriptor.extents
        if part.sparse is not None and part.sparse.storage is self.storage:
            return ""
        number = self.parts.index(part)
        return lines[number].kind if number < len(lines) else ""

    @property
    def has_parent(self) -> bool:
        return self.descriptor.parent_cid != NO_PARENT


def _find_descriptor(storage: Storage) -> tuple[int, bytes]:
    """Return the descriptor's place and its bytes; none in an extent that is only a part."""
    magic = storage.pread(0, 4)
    if magic == COWD:
        return 0, b""
    if magic != KDMV:
        return 0, storage.pread(0, min(storage.size(), MAX_DESCRIPTOR))
    header = SparseHeader.parse(storage.pread(0, SECTOR))
    if not header.descriptor:
        return 0, b""
    length = header.descriptor_sectors * SECTOR
    if length > MAX_DESCRIPTOR:
        raise CorruptImage(f"a descriptor of {length} bytes")
    place = header.descriptor * SECTOR
    return place, read_exactly(storage, place, length, "the descriptor")


def _descriptor_of(text: bytes) -> Descriptor:
    return parse_descriptor(text) if text else Descriptor({}, ())


def open_parent(image: VmdkImage, options: OpenOptions) -> Image:
    """Open the parent that the descriptor names and check that it is the right one."""
    name = image.descriptor.parent_name.replace("\\", "/")
    if options.related is None:
        raise ImageAccessDenied(f"the image needs its parent {name[:200]!r}")
    parent = options.related.image([name] if name else [], format="vmdk")
    if not isinstance(parent, VmdkImage) or parent.descriptor.cid != image.descriptor.parent_cid:
        parent.close()
        raise CorruptImage("the parent was changed after this disk was made from it (its CID)")
    return parent
