"""Which files differ in two states of one file system.

Both trees are walked together from the root, and where neither the blocks that differ nor the
journals touch an inode or a directory, the other one is not read. Contents are compared where
they may differ; times are not looked at: reading a file changes one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

import msgspec

from wirt.errors import OutOfBounds
from wirt.image.base import Image
from wirt.image.differences import Range
from wirt.image.ext4.blocks import Run
from wirt.image.ext4.volume import ROOT, Inode, Volume

MOST_FILES = 4_000_000
_LONGEST_PATH = 4096
_PIECE = 256
"""Blocks that are compared at once."""
_ATTRIBUTES_AT = 32


class FileChange(msgspec.Struct, frozen=True):
    """A file that differs.

    ``changed``: contents, or what a link or device leads to; ``attributes``: kind, rights, owner
    or extended attributes only.
    """

    path: str
    """From the root of the file system; bytes that are not UTF-8 are written ``\\xNN``."""
    change: Literal["added", "removed", "changed", "attributes"]


def file_differences(first: Image, second: Image, ranges: Sequence[Range]) -> Iterator[FileChange]:
    """Yield the files that differ, which only ``ranges`` of the disks can hold, in no order.

    ``added`` is what the second alone has. Raises ImageError, which is UnsupportedImage for what
    is no ext2, ext3 or ext4.
    """
    return _Comparison(Volume(first), Volume(second), ranges).run()


class _Comparison:
    def __init__(self, first: Volume, second: Volume, ranges: Sequence[Range]) -> None:
        self._first = first
        self._second = second
        self._starts = [start for start, _ in ranges]
        self._ends = [end for _, end in ranges]
        self._same_size = first.blocks.size == second.blocks.size
        self._left = MOST_FILES

    def run(self) -> Iterator[FileChange]:
        seen: set[tuple[int, int]] = set()
        waiting = [(b"", ROOT, ROOT)]
        while waiting:
            path, one, other = waiting.pop()
            if (one, other) in seen:
                continue
            seen.add((one, other))
            mine, theirs = self._listings(one, other)
            for name in mine.keys() | theirs.keys():
                below = path + b"/" + name
                self._count(below)
                here, there = mine.get(name), theirs.get(name)
                if here is not None and there is not None:
                    yield from self._pair(below, here, there, waiting)
                elif here is not None:
                    yield from self._alone(self._first, below, here, "removed")
                elif there is not None:
                    yield from self._alone(self._second, below, there, "added")

    def _count(self, path: bytes) -> None:
        self._left -= 1
        if self._left < 0 or len(path) > _LONGEST_PATH:
            raise OutOfBounds("the file system has more, or deeper, files than are looked at")

    def _listings(self, one: int, other: int) -> tuple[dict[bytes, int], dict[bytes, int]]:
        inode = self._first.inode(one)
        mine = dict(self._first.entries(inode))
        if self._is_same_inode(one, other) and self._is_untouched(self._first.runs(inode)):
            return mine, mine
        return mine, dict(self._second.entries(self._second.inode(other)))

    def _pair(
        self, path: bytes, one: int, other: int, waiting: list[tuple[bytes, int, int]]
    ) -> Iterator[FileChange]:
        here = self._first.inode(one)
        same = self._is_same_inode(one, other)
        there = here if same else self._second.inode(other)
        if here.is_directory and there.is_directory:
            waiting.append((path, one, other))
        elif here.is_directory or there.is_directory:
            yield from self._alone(self._first, path, one, "removed")
            yield from self._alone(self._second, path, other, "added")
            return
        elif self._contents_differ(here, there, same=same):
            yield FileChange(_text(path), "changed")
            return
        if not same and self._attributes_differ(here, there):
            yield FileChange(_text(path), "attributes")

    def _alone(
        self, volume: Volume, path: bytes, number: int, change: Literal["added", "removed"]
    ) -> Iterator[FileChange]:
        """Yield a file that only one has; of a directory also what is in it."""
        seen = set()
        waiting = [(path, number)]
        while waiting:
            path, number = waiting.pop()
            inode = volume.inode(number)
            yield FileChange(_text(path), change)
            if not inode.is_directory or number in seen:
                continue
            seen.add(number)
            for name, below in volume.entries(inode):
                self._count(path + b"/" + name)
                waiting.append((path + b"/" + name, below))

    def _is_same_inode(self, one: int, other: int) -> bool:
        """Return whether nothing that differs can be in the inode."""
        if one != other or not self._same_size:
            return False
        block, _ = place = self._first.place_of(one)
        if place != self._second.place_of(other):
            return False
        if self._is_untouched([Run(0, block, 1)]):
            return True
        return self._first.inode(one).raw == self._second.inode(other).raw

    def _is_untouched(self, runs: Sequence[Run]) -> bool:
        size = self._first.blocks.size
        for run in runs:
            index = bisect_right(self._starts, (run.physical + run.blocks) * size - 1) - 1
            if index >= 0 and self._ends[index] > run.physical * size:
                return False
            if self._in_journal(run):
                return False
        return True

    def _in_journal(self, run: Run) -> bool:
        blocks = range(run.physical, run.physical + run.blocks)
        for journal in (self._first.blocks.journal, self._second.blocks.journal):
            if len(journal) < len(blocks):
                if any(block in blocks for block in journal):
                    return True
            elif any(block in journal for block in blocks):
                return True
        return False

    def _contents_differ(self, here: Inode, there: Inode, *, same: bool) -> bool:
        if not here.has_blocks or not there.has_blocks:
            return not same and (here.size, here.map) != (there.size, there.map)
        if here.size != there.size:
            return True
        mine = self._first.runs(here)
        if same and self._is_untouched(mine):
            return False
        theirs = self._second.runs(there)
        return any(one != other for one, other in self._pieces(mine, theirs, here.size))

    def _pieces(
        self, mine: Sequence[Run], theirs: Sequence[Run], size: int
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield the contents side by side where they may differ."""
        one_size, other_size = self._first.blocks.size, self._second.blocks.size
        if not self._same_size:
            raise OutOfBounds("the blocks of the two file systems differ in size")
        for start, count in _boundaries(mine, theirs):
            one, other = _physical(mine, start), _physical(theirs, start)
            if one == other and one is not None and self._is_untouched([Run(0, one, count)]):
                continue
            most = size - start * one_size
            yield (
                _read(self._first, one, count, one_size)[:most],
                _read(self._second, other, count, other_size)[:most],
            )

    def _attributes_differ(self, here: Inode, there: Inode) -> bool:
        if here.attributes != there.attributes:
            return True
        one, other = here.attribute_block, there.attribute_block
        if not one or not other:
            return one != other
        mine = self._first.blocks.read(one)[_ATTRIBUTES_AT:]
        return mine != self._second.blocks.read(other)[_ATTRIBUTES_AT:]


def _text(path: bytes) -> str:
    return path.decode(errors="backslashreplace")


def _boundaries(mine: Sequence[Run], theirs: Sequence[Run]) -> Iterator[tuple[int, int]]:
    """Yield first block and number of pieces that neither map divides, of what one of them has."""
    cuts = sorted(
        {edge for run in (*mine, *theirs) for edge in (run.logical, run.logical + run.blocks)}
    )
    for start, end in pairwise(cuts):
        if _physical(mine, start) is None and _physical(theirs, start) is None:
            continue
        for at in range(start, end, _PIECE):
            yield at, min(_PIECE, end - at)


def _physical(runs: Sequence[Run], logical: int) -> int | None:
    index = bisect_right(runs, logical, key=lambda run: run.logical) - 1
    if index < 0 or logical >= runs[index].logical + runs[index].blocks:
        return None
    return runs[index].physical + logical - runs[index].logical


def _read(volume: Volume, block: int | None, count: int, size: int) -> bytes:
    return bytes(count * size) if block is None else volume.blocks.read_run(block, count)
