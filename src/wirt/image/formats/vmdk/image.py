"""An open VMDK disk: its extents, one behind the other."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator, Sequence

import msgspec
from msgspec.structs import replace

from wirt.errors import (
    CorruptImage,
    ImageAccessDenied,
    OutOfBounds,
    UnsupportedImage,
)
from wirt.image.base import Extent, ExtentKind, Image, ImageInfo, OpenOptions, Storage
from wirt.image.formats.mapped import SECTOR, stored_size, verbatim
from wirt.image.formats.table_check import Faults, Use, find_faults
from wirt.image.formats.table_image import OverlayTable, ResizableTable
from wirt.image.formats.vmdk.descriptor import (
    NO_PARENT,
    Descriptor,
    ExtentLine,
    changed_descriptor,
    cylinders,
)
from wirt.image.formats.vmdk.descriptor_text import DescriptorText, parent_of
from wirt.image.formats.vmdk.sesparse import SeSparseExtent
from wirt.image.formats.vmdk.sparse import COWD, KDMV, SparseExtent, SparseHeader

_SPARSE = {"SPARSE", "VMFSSPARSE"}
_FLAT = {"FLAT", "VMFS"}


class Part(msgspec.Struct):
    """One extent of the disk: flat (a storage), sparse, or zeros."""

    start: int
    length: int
    storage: Storage | None = None
    place: int = 0
    sparse: SparseExtent | None = None
    se_sparse: SeSparseExtent | None = None

    @property
    def end(self) -> int:
        return self.start + self.length


class VmdkImage(ResizableTable, OverlayTable):
    """Each sparse extent keeps its own table; a block is a grain of one of them."""

    format_name = "vmdk"
    _keeps_parent_id = True

    def __init__(self, storage: Storage, options: OpenOptions) -> None:
        super().__init__(storage, options)
        self._fresh = True
        self._text = DescriptorText(storage)
        self.parts: list[Part] = []
        self._lost_tables: list[tuple[SparseExtent, int]] = []
        self._files: list[Storage] = []
        self.new_files: list[str] = []
        """Paths of extents that a growing disk got, in the order of the disk."""
        self.removed_files: list[Storage] = []
        try:
            self._open_parts(options)
        except BaseException:
            self._close_files()
            raise
        self._starts = [part.start for part in self.parts]
        grains = {part.sparse.grain for part in self.parts if part.sparse is not None}
        if len(grains) > 1 and self.writable:
            self._close_files()
            raise UnsupportedImage("extents with grains of different sizes can only be read")
        self.block_size = max(grains, default=64 << 10)
        only = self.parts[0]
        if only.sparse is not None:
            self.direct_storage = only.sparse.storage
        elif only.storage is not None:
            self.direct_storage = only.storage

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
        known = _SPARSE | _FLAT | {"SESPARSE"}
        if line.access == "NOACCESS" or line.kind not in known:
            raise UnsupportedImage(f"VMDK extents of kind {line.kind} are not supported")
        file = self._file(line.file, options)
        if line.kind in _FLAT:
            return Part(start, length, file, line.offset * SECTOR)
        sparse: SparseExtent | SeSparseExtent
        if line.kind == "SESPARSE":
            if self.writable:
                raise UnsupportedImage("SESPARSE extents can only be read")
            sparse = SeSparseExtent(file, options.budget)
        else:
            sparse = SparseExtent(file, options.budget, writable=self.writable)
        if sparse.length < length:
            raise CorruptImage(f"the extent {line.file[:60]!r} is shorter than declared")
        if isinstance(sparse, SeSparseExtent):
            return Part(start, length, se_sparse=sparse)
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

    def add_part(self, part: Part) -> None:
        self.parts.append(part)
        self._starts.append(part.start)
        file = part.storage or (part.sparse.storage if part.sparse is not None else None)
        if file is not None:
            self._files.append(file)

    def remove_last_part(self) -> None:
        part = self.parts.pop()
        self._starts.pop()
        file = part.storage or (part.sparse.storage if part.sparse is not None else None)
        if file is not None:
            self._files.remove(file)
            self.removed_files.append(file)

    def _part_at(self, offset: int) -> Part:
        return self.parts[bisect.bisect_right(self._starts, offset) - 1]

    def _run(self, offset: int, limit: int) -> Extent:
        part = self._part_at(offset)
        inside = offset - part.start
        limit = min(limit, part.length - inside)
        if part.sparse is not None:
            return replace(part.sparse.run(inside, limit), offset=offset)
        if part.se_sparse is not None:
            return replace(part.se_sparse.run(inside, limit), offset=offset)
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

    def _grain(self, index: int) -> tuple[SparseExtent, int]:
        """Return the extent that holds a block, and the block's offset there."""
        part = self._part_at(index * self.block_size)
        if part.sparse is None or part.start % self.block_size:
            raise UnsupportedImage("an extent does not begin on a grain: it can only be read")
        return part.sparse, index * self.block_size - part.start

    def _store(self, index: int, content: bytes) -> None:
        sparse, offset = self._grain(index)
        sparse.store(offset, content)

    def _file_of(self, index: int) -> Storage:
        return self._grain(index)[0].storage

    def _new_place(self, index: int) -> int:
        sparse, offset = self._grain(index)
        return sparse.new_place(offset)

    def _point(self, index: int, place: int) -> None:
        raise UnsupportedImage("the extent gives its grains their places")

    def _place_of(self, index: int) -> int | None:
        sparse, offset = self._grain(index)
        return sparse.place_of(offset)

    def _is_set(self, index: int) -> bool:
        sparse, offset = self._grain(index)
        return sparse.is_set(offset)

    def _forget(self, index: int) -> None:
        sparse, offset = self._grain(index)
        sparse.forget(offset)

    def _set_blocks(self) -> Iterator[int]:
        for part in self.parts:
            if part.sparse is not None:
                first = part.start // self.block_size
                for offset in part.sparse.used_offsets():
                    yield first + offset // part.sparse.grain

    def _metadata(self) -> Iterator[Use]:
        """Every extent has its own: see ``_faults``."""
        yield from ()

    def _zero(self, index: int) -> bool:
        part = self._part_at(index * self.block_size)
        if part.sparse is None or part.start % self.block_size:
            return False
        return part.sparse.zero(index * self.block_size - part.start)

    # Copies by the kernel

    @property
    def can_allocate(self) -> bool:
        only = self.parts[0]
        stored = only.storage is not None or only.sparse is not None
        return len(self.parts) == 1 and stored

    def allocate(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        only = self.parts[0]
        if only.storage is None:
            yield from super().allocate(offset, length)
            return
        self._check(offset, length)
        self._before_write()
        yield offset, only.place + offset, length

    # Checking

    def _faults(self) -> Faults:
        found = Faults()
        for part in self.parts:
            if part.sparse is None:
                continue
            size = part.sparse.storage.size()
            uses = part.sparse.uses(part.start // self.block_size)
            overhead = part.sparse.header.overhead * SECTOR
            faults = find_faults(uses, size, self.block_size, first_block=overhead)
            found.beyond += faults.beyond
            found.shared += faults.shared
            found.leaks += 0 if part.sparse.compressed else faults.leaks
            found.end = max(found.end, faults.end)
            found.blocks += faults.blocks
            found.fragmented += faults.fragmented
            found.messages += faults.messages
            if self.writable:
                self._drop_tables(part.sparse, faults)
        return found

    def _drop_tables(self, sparse: SparseExtent, faults: Faults) -> None:
        self._lost_tables += [(sparse, -2 - use.index) for use in faults.beyond if use.index < -1]

    def _repair(self, *, everything: bool) -> None:
        self._lost_tables = []
        super()._repair(everything=everything)
        self.flush()

    def _forget_use(self, use: Use) -> None:
        super()._forget_use(use)
        while self._lost_tables:
            sparse, number = self._lost_tables.pop()
            sparse.forget_table(number)

    def _trim(self) -> None:
        for part in self.parts:
            if part.sparse is not None:
                part.sparse.trim()

    # Descriptor

    @property
    def descriptor(self) -> Descriptor:
        return self._text.parsed

    def _replace_text(self, text: bytes, header: SparseHeader | None = None) -> None:
        """Let the descriptor be ``text`` (and the extent's header ``header``), at once."""
        self._text.replace(text, self.parts[0].sparse, header)
        self.storage = self._text.storage

    def set_backing(self, name: str | None, backing_format: str | None) -> None:
        self._before_write()
        self.flush()
        if any(part.sparse is None for part in self.parts) or not self._text.text:
            raise UnsupportedImage("a flat VMDK, or one without a descriptor, has no parent")
        parent = NO_PARENT if name is None else parent_of(self.storage, name)[0]
        settings = {"parentCID": f"{parent:08x}", "parentFileNameHint": name}
        self._replace_text(changed_descriptor(self._text.text, settings=settings))

    # Size

    def _extend(self, blocks: int) -> None:
        raise UnsupportedImage("an extent grows by sectors, not by grains")

    def _switch(self, size: int) -> None:
        raise UnsupportedImage("an extent grows by sectors, not by grains")

    def _grow(self, size: int) -> None:
        from wirt.image.formats.vmdk.resize import grow

        old = self.virtual_size
        try:
            header = grow(self, size)
            self._hide_old(old)
            super().flush()
        except BaseException:
            self.virtual_size = old
            self._unpublished = {i for i in self._unpublished if i * self.block_size < old}
            raise
        self._show_size(header)

    def _shrink(self, size: int) -> None:
        from wirt.image.formats.vmdk.resize import forget_behind, shrink

        header = shrink(self, size)
        self._show_size(header)
        forget_behind(self)

    def _show_size(self, header: SparseHeader | None) -> None:
        settings: dict[str, str | None] = {}
        heads = self.descriptor.settings.get("ddb.geometry.heads", "")
        if heads.isdigit() and 0 < int(heads) <= 255:
            count = cylinders(self.virtual_size, int(heads))
            settings["ddb.geometry.cylinders"] = str(count)
        lines = extent_lines(self)
        if self._text.text:
            text = changed_descriptor(self._text.text, settings=settings, extents=lines)
            self._replace_text(text, header)
        elif header is not None and self.parts[0].sparse is not None:
            self.parts[0].sparse.write_header(header)

    def _publish(self, indexes: list[int]) -> None:
        for part in self.parts:
            if part.sparse is not None:
                part.sparse.storage.flush()
                part.sparse.publish()

    def _before_write(self) -> None:
        """Give the disk a new CID before its first change: children must not fit any more."""
        super()._before_write()
        if self._fresh and self._text.text:
            self._fresh = False
            self._text.renew_cid()

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


def extent_lines(image: VmdkImage) -> list[ExtentLine]:
    """Return the descriptor's extents, as long as the parts are now."""
    lines = list(image.descriptor.extents)
    new = (
        [
            ExtentLine("RW", 0, lines[-1].kind, os.path.basename(image.new_files[i]))
            for i in range(len(image.parts) - len(lines))
        ]
        if lines
        else []
    )
    parts = zip(lines + new, image.parts, strict=False)
    return [replace(line, sectors=part.length // SECTOR) for line, part in parts]


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
