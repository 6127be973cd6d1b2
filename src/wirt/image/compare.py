"""Comparing what the guest would see in two images."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import msgspec

from wirt.image.base import Budget, Extent, ExtentKind, Image
from wirt.image.expansion import refuse_expansion
from wirt.image.extents import chain_extents
from wirt.image.pipeline import Job, cut, finished
from wirt.image.progress import Progress, silent

_SECTOR = 512
_CHUNK = 256 << 10


class Comparison(msgspec.Struct, frozen=True):
    """Whether two disks are the same, and where they first differ if not."""

    identical: bool
    reason: str = ""
    """``data``, and under strict rules also ``size`` or ``allocation``."""
    offset: int = 0
    """Of the first sector that differs."""
    sizes_differ: bool = False


class _Difference(NamedTuple):
    reason: str
    offset: int


class _Found(Exception):
    def __init__(self, difference: _Difference) -> None:
        super().__init__(difference)
        self.difference = difference


def compare(
    first: Image,
    second: Image,
    *,
    strict: bool = False,
    budget: Budget | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Compare the guest's bytes; what one disk has beyond the other must be zeros.

    ``strict`` also wants equal sizes and the same places allocated. Raises ImageError.
    """
    for image in (first, second):
        refuse_expansion(image, budget or Budget())
    sizes_differ = first.virtual_size != second.virtual_size
    if strict and sizes_differ:
        return Comparison(identical=False, reason="size", sizes_differ=True)
    total = max(first.virtual_size, second.virtual_size)
    jobs = _jobs(first, second, strict=strict)
    try:
        for done in finished(jobs, len(os.sched_getaffinity(0))):
            progress(done, total)
    except _Found as found:
        difference = found.difference
        return Comparison(
            identical=False,
            reason=difference.reason,
            offset=difference.offset,
            sizes_differ=sizes_differ,
        )
    return Comparison(identical=True, sizes_differ=sizes_differ)


def _jobs(first: Image, second: Image, *, strict: bool) -> Iterator[Job]:
    for offset, end, one, other in side_by_side(first, second):
        if strict and _state(one) != _state(other):
            yield Job(end, partial(_Difference, "allocation", offset), _stop)
            return
        if same_place(one, other) or (reads_zero(one) and reads_zero(other)):
            continue
        packed = any(side is not None and side.compressed for side in (one, other))
        here = None if reads_zero(one) else first
        there = None if reads_zero(other) else second
        for at, stop in cut(offset, end, _CHUNK):
            look = partial(first_difference, here, there, at, stop)
            yield Job(stop, look, _stop, weight=int(packed))


def side_by_side(
    first: Image | None, second: Image | None, offset: int = 0, end: int | None = None
) -> Iterator[tuple[int, int, Extent | None, Extent | None]]:
    """Yield (offset, end, extent here, extent there); None where there is no disk (any more)."""
    ones, others = _extents(first, offset, end), _extents(second, offset, end)
    one, other = next(ones, None), next(others, None)
    while one is not None or other is not None:
        stop = min(side.end for side in (one, other) if side is not None)
        if stop > offset:
            yield offset, stop, one, other
        offset = stop
        if one is not None and one.end == stop:
            one = next(ones, None)
        if other is not None and other.end == stop:
            other = next(others, None)


def _extents(image: Image | None, offset: int, end: int | None) -> Iterator[Extent]:
    if image is None:
        return iter(())
    end = image.virtual_size if end is None else min(end, image.virtual_size)
    return chain_extents(image, offset, max(0, end - offset)) if end > offset else iter(())


def reads_zero(extent: Extent | None) -> bool:
    """Return whether a disk shows zeros there (also where it has ended)."""
    return extent is None or extent.kind is not ExtentKind.DATA


def _state(extent: Extent | None) -> tuple[object, ...]:
    return () if extent is None else (extent.kind, extent.compressed)


def same_place(one: Extent | None, other: Extent | None) -> bool:
    """Return whether both are the same bytes of one file, as in overlays of one image."""
    if one is None or other is None or one.storage is None or other.storage is None:
        return False
    if one.storage_offset is None or other.storage_offset is None:
        return False
    if one.storage_offset - one.offset != other.storage_offset - other.offset:
        return False
    if one.storage is other.storage:
        return True
    here, there = one.storage.fileno(), other.storage.fileno()
    if here is None or there is None:
        return False
    return os.path.samestat(os.fstat(here), os.fstat(there))


def first_difference(
    first: Image | None, second: Image | None, offset: int, end: int
) -> _Difference | None:
    """Return where the first sector differs, if any; None stands for zeros."""
    length = end - offset
    one = _BUFFERS.read(0, first, offset, length)
    other = _BUFFERS.read(1, second, offset, length)
    if one == other:
        return None
    for at in range(0, length, _SECTOR):
        if one[at : at + _SECTOR] != other[at : at + _SECTOR]:
            return _Difference("data", offset + at)
    return None


class _Buffers(threading.local):
    """Two buffers for each thread: fresh memory costs more than what is read into it."""

    def __init__(self) -> None:
        self._held = [bytearray(), bytearray()]

    def read(self, which: int, image: Image | None, offset: int, length: int) -> bytearray:
        """Return the bytes, until the next read; None stands for zeros."""
        buffer = self._held[which]
        if image is None or len(buffer) != length:
            buffer = bytearray(length)
        if image is None:
            return buffer
        self._held[which] = buffer
        image.pread_into(offset, memoryview(buffer))
        return buffer


_BUFFERS = _Buffers()


def _stop(difference: _Difference | None) -> None:
    if difference is not None:
        raise _Found(difference)
