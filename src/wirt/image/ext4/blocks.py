"""The blocks of a file system as they are after a replay of its journal, and where a file's lie.

A file's map is a tree of extents (magic 0xF30A), or of ext2: twelve blocks, then a block of
numbers, one of such blocks, and one of those.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from wirt.errors import CorruptImage, OutOfBounds
from wirt.image.base import Image

_CACHED = 4096
_EXTENT_MAGIC = 0xF30A
_DEEPEST = 5
_WRITTEN = 32768
"""An extent's length beyond this is that of one that was reserved, and reads as zeros."""
_ESCAPED = b"\xc0\x3b\x39\x98"


class Run(NamedTuple):
    """Blocks of a file that lie side by side: first in the file, first on the disk, how many."""

    logical: int
    physical: int
    blocks: int


class Moved(NamedTuple):
    """Where the journal holds a block; ``escaped``: without the journal's magic, which it had."""

    block: int
    escaped: bool


class Blocks(msgspec.Struct):
    """Reads blocks; ``journal`` says which it has newer; ``deadline`` is a monotonic time."""

    image: Image
    size: int
    deadline: float
    journal: dict[int, Moved] = msgspec.field(default_factory=dict)
    _cache: dict[int, bytes] = msgspec.field(default_factory=dict)

    def read(self, block: int) -> bytes:
        """Return one block of metadata. Raises CorruptImage, OutOfBounds."""
        self.check_time()
        found = self._cache.get(block)
        if found is None:
            if len(self._cache) >= _CACHED:
                self._cache.clear()
            found = self._cache[block] = self._fresh(block)
        return found

    def _fresh(self, block: int) -> bytes:
        moved = self.journal.get(block)
        if moved is None:
            return self.read_raw(block, 1)
        data = self.read_raw(moved.block, 1)
        return _ESCAPED + data[4:] if moved.escaped else data

    def check_time(self) -> None:
        """Raise OutOfBounds when too much of it has been spent."""
        if time.monotonic() > self.deadline:
            raise OutOfBounds("the file system takes longer to read than any honest one")

    def read_raw(self, block: int, count: int) -> bytes:
        """Return blocks as they lie on the disk."""
        self.check_time()
        if not 0 <= block <= block + count <= self.image.virtual_size // self.size:
            raise CorruptImage(f"block {block} does not lie in the file system")
        return self.image.pread(block * self.size, count * self.size)

    def read_run(self, block: int, count: int) -> bytes:
        """Return blocks of a file, which the journal may have too."""
        if any(one in self.journal for one in range(block, block + count)):
            return b"".join(self._fresh(one) for one in range(block, block + count))
        return self.read_raw(block, count)


def extent_runs(blocks: Blocks, root: bytes) -> Iterator[Run]:
    """Yield the runs of a tree of extents, in order. Raises CorruptImage."""
    at = 0
    for run in _extents(blocks, root, _DEEPEST + 1):
        if run.logical < at:
            raise CorruptImage("the extents of a file overlap")
        at = run.logical + run.blocks
        yield run


def _extents(blocks: Blocks, node: bytes, above: int) -> Iterator[Run]:
    magic, count, _, depth = struct.unpack_from("<HHHH", node)
    if magic != _EXTENT_MAGIC or depth >= above or 12 + 12 * count > len(node):
        raise CorruptImage("the extents of a file are damaged")
    last = -1
    for index in range(count):
        entry = node[12 + 12 * index : 24 + 12 * index]
        (logical,) = struct.unpack_from("<I", entry)
        if logical <= last:
            raise CorruptImage("the extents of a file are out of order")
        last = logical
        if depth:
            low, high = struct.unpack_from("<IH", entry, 4)
            yield from _extents(blocks, blocks.read(high << 32 | low), depth)
        else:
            length, high, low = struct.unpack_from("<HHI", entry, 4)
            if length and length <= _WRITTEN:
                yield Run(logical, high << 32 | low, length)


def pointer_runs(blocks: Blocks, root: bytes, count: int) -> Iterator[Run]:
    """Yield the runs of ext2's map of a file that has ``count`` blocks. Raises CorruptImage."""
    run: Run | None = None
    for logical, physical in _pointers(blocks, root, count):
        if run and (run.logical + run.blocks, run.physical + run.blocks) == (logical, physical):
            run = run._replace(blocks=run.blocks + 1)
            continue
        if run:
            yield run
        run = Run(logical, physical, 1)
    if run:
        yield run


def _pointers(blocks: Blocks, root: bytes, count: int) -> Iterator[tuple[int, int]]:
    numbers = struct.unpack("<15I", root)
    logical = 0
    for index, number in enumerate(numbers):
        level = max(0, index - 11)
        if logical >= count:
            return
        yield from _below(blocks, number, level, logical, count)
        logical += (blocks.size // 4) ** level


def _below(
    blocks: Blocks, number: int, level: int, logical: int, count: int
) -> Iterator[tuple[int, int]]:
    if not number:
        return
    if not level:
        yield logical, number
        return
    step = (blocks.size // 4) ** (level - 1)
    for index, below in enumerate(struct.unpack(f"<{blocks.size // 4}I", blocks.read(number))):
        if logical + index * step >= count:
            return
        yield from _below(blocks, below, level - 1, logical + index * step, count)
