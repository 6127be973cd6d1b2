"""Disks whose blocks lie anywhere in one file, found through a table: what they share.

A format says how an entry is read and set; where a new block goes, copies by the kernel,
resizing, emptying and checking follow from that. An entry never names a block before the
block is durable, and a table that moves is complete before the header names it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from wirt.errors import OutOfBounds, UnsupportedImage, UsageError
from wirt.image.base import (
    Checkable,
    CheckResult,
    DirectAllocator,
    ExtentKind,
    OpenOptions,
    Overlay,
    Resizable,
    Storage,
)
from wirt.image.formats.mapped import SECTOR, BlockImage
from wirt.image.formats.table_check import Faults, Use, find_faults, repaired


class TableImage(BlockImage, DirectAllocator, Checkable):
    """Blocks of one size in one file, each aligned to ``_align``."""

    _align: int = SECTOR
    _lead: int = 0
    """Bytes of a block before its data (a bitmap)."""

    def __init__(self, storage: Storage, options: OpenOptions) -> None:
        super().__init__()
        self.storage = self.direct_storage = storage
        self.writable = options.writable

    @abstractmethod
    def _place_of(self, index: int) -> int | None:
        """Return where the block begins in the file, None if it has no place."""

    @abstractmethod
    def _point(self, index: int, place: int) -> None:
        """Let the entry say that the block lies at ``place``. Raises OutOfBounds."""

    @abstractmethod
    def _forget(self, index: int) -> None:
        """Let the entry say that the block is not allocated."""

    @abstractmethod
    def _metadata(self) -> Iterator[Use]:
        """Yield what lies in the file beside the blocks."""

    @property
    def _span(self) -> int:
        return self._lead + self.block_size

    @property
    def _block_count(self) -> int:
        return -(-self.virtual_size // self.block_size)

    def _is_set(self, index: int) -> bool:
        """Return whether the entry says anything: a place, or a mark that the block is zeros."""
        return self._place_of(index) is not None

    def _set_blocks(self) -> Iterator[int]:
        """Yield the blocks whose entries say anything, in the order of the disk."""
        return (index for index in range(self._block_count) if self._is_set(index))

    def _allocated(self) -> Iterator[int]:
        """Yield the blocks that have a place, in the order of the disk."""
        return (index for index in self._set_blocks() if self._place_of(index) is not None)

    # Allocation

    def _new_place(self, index: int) -> int:
        """Give the block a new place behind all others; return where its data belong."""
        data = -(-(self._next + self._lead) // self._align) * self._align
        self._point(index, data - self._lead)
        self._next = data + self.block_size
        if self.storage.size() < self._next:
            self.storage.truncate(self._next)
        return data

    def _store(self, index: int, content: bytes) -> None:
        old = self.storage.size()
        place = self._new_place(index)
        if place < old:
            self.storage.pwrite(place, content)
            return
        # The file has just grown: what is not written there reads as zeros.
        stripped = content.rstrip(b"\0")
        first = len(stripped) - len(stripped.lstrip(b"\0"))
        self.storage.pwrite(place + first, memoryview(stripped)[first:])

    def _write_part(self, index: int, offset: int, part: memoryview) -> None:
        if self.backing is not None or self._is_set(index):
            super()._write_part(index, offset, part)
            return
        # Nothing shows through a new block: what is not written reads as zeros.
        old = self._file_of(index).size()
        place = self._new_place(index)
        if place < old and len(part) < self.block_size:
            self._file_of(index).pwrite(place, bytes(self.block_size))
        self._file_of(index).pwrite(place + offset - index * self.block_size, part)
        self._unpublished.add(index)

    def _file_of(self, index: int) -> Storage:
        """Return the file that the block lies in."""
        return self.storage

    @property
    def can_allocate(self) -> bool:
        return True

    def allocate(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        self._check(offset, length)
        self._before_write()
        for index, start, part in self._blocks(offset, length):
            yield start, self._reserved(index, start, part), part

    def _reserved(self, index: int, offset: int, length: int) -> int:
        run = self._run(offset, length)
        if run.kind is not ExtentKind.DATA or run.length < length or run.storage_offset is None:
            self._unpublished.add(index)
            if self._place_of(index) is None and length == self._block_length(index):
                return self._new_place(index)
            self._store(index, self._overlaid(index, offset, memoryview(b"")))
            run = self._run(offset, length)
        return run.storage_offset or 0

    @contextmanager
    def bulk_write(self) -> Iterator[None]:
        # Nothing is ordered before the flush in any case.
        yield
        self.flush()

    # Checking

    def check(self, *, repair: str = "") -> CheckResult:
        if repair not in {"", "leaks", "all"}:
            raise UsageError(f"there is no repair {repair[:20]!r}", hint="leaks or all")
        found = self._inspected()
        if repair and (found.corruptions or found.leaks):
            self._before_write()
            self.flush()
            self._repair(everything=repair == "all")
            found = repaired(found, self._inspected())
        if repair and not found.corruptions:
            self._mark_clean()
        return found

    def _inspected(self) -> CheckResult:
        return self._faults().result(self._block_count, self._own_faults())

    def _faults(self) -> Faults:
        return find_faults(self._uses(), self.storage.size(), self._span, align=self._grid)

    @property
    def _grid(self) -> int:
        """What a block's place must be a multiple of."""
        return SECTOR

    def _own_faults(self) -> list[str]:
        """Return what is wrong beside the places of blocks."""
        return []

    def _repair(self, *, everything: bool) -> None:
        """Forget entries that name no place, give blocks that share one their own, cut the end."""
        faults = self._faults()
        if everything:
            for use in faults.beyond:
                self._forget_use(use)
            self._next = max(self._next, self.storage.size())
            for use in faults.shared:
                if use.index >= 0:
                    start = use.index * self.block_size
                    self._store(use.index, self._overlaid(use.index, start, memoryview(b"")))
                    self._unpublished.add(use.index)
        self.flush()
        if everything or not faults.beyond + faults.shared:
            self._trim()

    def _forget_use(self, use: Use) -> None:
        if use.index >= 0:
            self._forget(use.index)
            self._unpublished.add(use.index)

    def _mark_clean(self) -> None:
        """Take the mark away that says the image was not closed."""

    # Emptying

    def _drop_all(self) -> None:
        """Forget every block and give the space back."""
        self._before_write()
        self.flush()
        for index in list(self._set_blocks()):
            self._forget(index)
            self._unpublished.add(index)
        self.flush()
        self._trim()

    def _trim(self) -> None:
        """Cut off what lies behind everything in use."""
        end = max((use.end for use in self._uses()), default=0)
        self._next = end
        if end < self.storage.size():
            self.storage.truncate(end)
            self.storage.flush()

    def _uses(self) -> Iterator[Use]:
        yield from self._metadata()
        for index in self._allocated():
            place = self._place_of(index)
            if place is not None:
                yield Use(place, self._span, f"block {index}", index)


class ResizableTable(TableImage, Resizable):
    """A table that can grow and shrink; the header switches when everything is in its place."""

    @abstractmethod
    def _extend(self, blocks: int) -> None:
        """Make room for so many entries, the new ones not allocated; nothing shows it yet."""

    @abstractmethod
    def _switch(self, size: int) -> None:
        """Write all entries of the larger table, then let the header say ``size``, durably."""

    def _refuse_size(self, size: int) -> None:
        """Raise OutOfBounds for a size that the format cannot have."""

    def _cut(self, blocks: int) -> None:
        """Take the entries from ``blocks`` on, which are empty by now, out of the table."""

    def resize(self, size: int, *, preallocation: str = "off") -> None:
        """Set the virtual size; a power cut leaves the old disk or the new one."""
        self._before_write()
        if size < 0 or size % SECTOR:
            raise OutOfBounds(f"a disk of {size} bytes is not made of sectors")
        if preallocation != "off":
            raise UnsupportedImage(f"{self.format_name} images have no preallocation")
        self._refuse_size(size)
        self.flush()
        if size > self.virtual_size:
            self._grow(size)
        elif size < self.virtual_size:
            self._shrink(size)

    def _grow(self, size: int) -> None:
        old, blocks = self.virtual_size, self._block_count
        try:
            self._extend(-(-size // self.block_size))
            self.virtual_size = size
            self._hide_old(old)
            self.storage.flush()
            self._switch(size)
        except BaseException:
            self.virtual_size = old
            self._unpublished = {index for index in self._unpublished if index < blocks}
            raise
        self._unpublished.clear()

    def _hide_old(self, old: int) -> None:
        """The new part is zeros, whatever a shorter disk or its backing image held there."""
        end = -(-old // self.block_size) * self.block_size
        if self.backing is not None:
            end = max(end, self.backing.virtual_size)
        end = min(end, self.virtual_size)
        if end > old:
            self.write_zeroes(old, end - old)

    def _shrink(self, size: int) -> None:
        kept = -(-size // self.block_size)
        beyond = [index for index in self._set_blocks() if index >= kept]
        self._switch(size)
        for index in beyond:
            self._forget(index)
        self._unpublished.update(beyond)
        self.flush()
        self.virtual_size = size
        self._cut(kept)
        self._trim()


class OverlayTable(TableImage, Overlay):
    """A table whose blocks may be those of a backing image."""

    _keeps_parent_id: ClassVar[bool] = False
    """The parent's identity is stored, and changes when it is written."""

    def make_empty(self) -> None:
        self._drop_all()

    def accept_backing(self) -> None:
        info = self.info()
        if self._keeps_parent_id and info.backing_name:
            self.set_backing(info.backing_name, info.backing_format)
