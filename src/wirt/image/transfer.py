"""Copying a guest disk from one open image to another, in order and in bounded memory.

Three ways, chosen span by span: the kernel copies what lies verbatim in a file where that
shares blocks (``copy_file_range``); what is compressed, or is to be, is unpacked and packed
by worker threads; all else is read, searched for zeros and written. Threads are a bounded
number of bytes ahead. Everything is written in guest order by the calling thread, but where
order means nothing to the target, the thread that read bytes writes them: its cache still
has them.
"""

from __future__ import annotations

import contextlib
import mmap
import time
from collections.abc import Callable, Iterator
from functools import partial
from threading import Lock
from typing import NamedTuple

import msgspec

from wirt.errors import CorruptImage, ImageIoError, UnsupportedImage
from wirt.image.base import (
    CompressedWriter,
    DirectAllocator,
    Extent,
    ExtentKind,
    Image,
    Storage,
    WritableImage,
)
from wirt.image.compressors import Compress
from wirt.image.extents import chain_extents, joined
from wirt.image.kernel_copy import copy_range, shares_blocks
from wirt.image.pipeline import Job, cut, finished, nothing_more
from wirt.image.progress import Progress, silent
from wirt.image.zero_runs import data_runs, is_zero

_CHUNK = 512 << 10
_PLAIN_CHUNKS = 16  # at once, where a thread only copies: one is done before it was worth it
_CHUNKS_IN_A_ROW = 4  # of one thread: to hand over a job costs as much as to unpack a cluster
_KERNEL_CHUNK = 64 << 20
_LARGEST_UNIT = 1 << 20
_FLUSHED_AT_ONCE = 128 << 20  # to begin costs a look at all of the file that is not on the disk
_LONGEST_SPAN = 1 << 30
_SALVAGED = 4096


class Span(NamedTuple):
    """A run of guest bytes to transfer."""

    offset: int
    end: int
    is_data: bool
    packed: bool = False
    """Some of it is compressed or far away, so reading it is work for a thread."""
    verbatim: Extent | None = None
    """Where the kernel finds the bytes, if it is to copy them."""


class Transfer(msgspec.Struct):
    """What to copy, and how. ``run`` does it."""

    source: Image
    target: WritableImage
    zero_unit: int = 4096
    """Zeros are looked for in aligned runs of this many bytes; 0 writes them all as data."""
    writes_zeros: bool = False
    """Zeros must be written: the target shows something else where nothing is written."""
    top_only: bool = False
    """Copy what the source's first image holds; the target's backing image has the rest."""
    compress: Compress | None = None
    workers: int = 2
    offload: bool | None = None
    """Let the kernel copy: always, never, or (None) where files can share blocks."""
    salvage: bool = False
    """Write zeros for what cannot be read, instead of failing."""
    rate_limit: int = 0
    """Bytes per second at most; 0 is no limit."""
    progress: Progress = silent
    checkpoint: Callable[[int], None] | None = None
    """Called with an offset up to which everything has been written, after each piece."""
    lost: list[tuple[int, int]] = msgspec.field(default_factory=list)
    """(offset, length) of what was salvaged as zeros, as the threads came upon it."""
    _buffers: list[mmap.mmap] = msgspec.field(default_factory=list)
    """For reuse: fresh memory costs more than what is read into it."""
    _turn: Lock = msgspec.field(default_factory=Lock)
    """To write: the kernel lets one thread at a time write to a file, and who waits there spins."""

    def run(self, start: int = 0) -> None:
        """Copy from guest offset ``start`` on. Raises ImageError; the target is then incomplete."""
        total = min(self.source.virtual_size, self.target.virtual_size)
        began, flushed = time.monotonic(), start
        for done in finished(self._jobs(start, total), self.workers):
            self.progress(done, total)
            if done - flushed >= _FLUSHED_AT_ONCE:
                self._written_to.begin_flush()
                flushed = done
            if self.checkpoint is not None:
                self.checkpoint(done)
            if self.rate_limit:
                due = began + (done - start) / self.rate_limit
                time.sleep(max(0.0, due - time.monotonic()))

    @property
    def _written_to(self) -> Storage:
        target = self.target
        return target.direct_storage if isinstance(target, DirectAllocator) else target.storage

    # Spans

    @property
    def _unit(self) -> int:
        """What is written whole: the target's cluster, or a block of the file."""
        if self.compress is not None and isinstance(self.target, CompressedWriter):
            return self.target.compression_unit
        return max(self.zero_unit, min(self.target.info().cluster_size, _LARGEST_UNIT), 4096)

    def _spans(self, start: int, total: int) -> Iterator[Span]:
        """Yield the spans in order: data rounded outwards to whole units, neighbours joined."""
        waiting: Span | None = None
        for span in self._pieces(start, total, self._unit):
            if waiting is not None and _joins(waiting, span):
                waiting = waiting._replace(end=span.end, packed=waiting.packed or span.packed)
                continue
            if waiting is not None:
                yield waiting
            waiting = span
        if waiting is not None:
            yield waiting

    def _pieces(self, start: int, total: int, unit: int) -> Iterator[Span]:
        """Cut each extent into its whole units and its edges, which are copied as data."""
        at = start
        for extent in self._extents(start, total):
            if extent.end <= at:
                continue
            last = extent.end if extent.end == total else extent.end // unit * unit
            if self._needs_nothing(extent):
                at = max(at, last)
                continue
            first = max(at, -(-extent.offset // unit) * unit)
            at = max(at, extent.offset // unit * unit)
            verbatim = self._offloads(extent)
            if last > first and (verbatim or extent.kind is not ExtentKind.DATA):
                if first > at:
                    yield Span(at, first, is_data=True, packed=_is_heavy(extent))
                data = verbatim or not self.zero_unit
                yield Span(first, last, is_data=data, verbatim=extent if verbatim else None)
                at = last
            outer = min(-(-extent.end // unit) * unit, total)
            if outer > at:
                yield Span(at, outer, is_data=True, packed=_is_heavy(extent))
                at = outer

    def _needs_nothing(self, extent: Extent) -> bool:
        """Return whether the target already shows these bytes where nothing is written."""
        if extent.kind is ExtentKind.DATA:
            return False
        if self.top_only and extent.kind is ExtentKind.HOLE:
            return True
        return bool(self.zero_unit) and not self.writes_zeros

    def _extents(self, start: int, total: int) -> Iterator[Extent]:
        if self.top_only:
            return joined(self.source.extents(start, total - start))
        return chain_extents(self.source, start, total - start)

    def _offloads(self, extent: Extent) -> bool:
        target = self.target
        if self.offload is False or self.compress is not None:
            return False
        if (
            extent.kind is not ExtentKind.DATA
            or extent.storage is None
            or extent.storage.fileno() is None
        ):
            return False
        if not isinstance(target, DirectAllocator) or not target.can_allocate:
            return False
        if target.direct_storage.fileno() is None:
            return False
        if self.offload is None:
            self.offload = shares_blocks(extent.storage, target.direct_storage)
        return self.offload

    # Jobs

    def _jobs(self, start: int, total: int) -> Iterator[Job]:
        unit = self._unit
        for span in self._spans(start, total):
            if not span.is_data:
                yield Job(span.end, partial(self._zero, span.offset, span.end), nothing_more)
            elif span.verbatim is not None:
                yield from self._kernel_jobs(span, span.verbatim)
            else:
                yield from self._data_jobs(span, unit)

    def _kernel_jobs(self, span: Span, extent: Extent) -> Iterator[Job]:
        for offset, end in cut(span.offset, span.end, _KERNEL_CHUNK):
            yield Job(end, partial(self._kernel_copy, extent, offset, end), nothing_more)

    def _data_jobs(self, span: Span, unit: int) -> Iterator[Job]:
        chunk = _whole(_CHUNK, unit)
        small = span.packed or self.rate_limit
        at_once = chunk if small else _whole(_PLAIN_CHUNKS * _CHUNK, unit)
        if self.compress is not None and isinstance(self.target, CompressedWriter):
            for offset, end in cut(span.offset, span.end, chunk):
                pack = partial(self._packed, self.compress, offset, end, unit)
                yield Job(end, pack, partial(self._write_packed, self.target), weight=1)
        elif self.target.writes_in_any_order:
            step = at_once * (_CHUNKS_IN_A_ROW if span.packed else 1)
            for offset, end in cut(span.offset, span.end, step):
                copy = partial(self._copy, offset, end, at_once, unit)
                yield Job(end, copy, nothing_more, weight=at_once // chunk)
        else:
            for offset, end in cut(span.offset, span.end, at_once):
                read = partial(self._searched, offset, end, unit)
                yield Job(end, read, partial(self._write, offset), weight=at_once // chunk)

    def _zero(self, offset: int, end: int) -> None:
        if self.writes_zeros and end > offset:
            self.target.write_zeroes(offset, end - offset)

    def _kernel_copy(self, extent: Extent, offset: int, end: int) -> None:
        target = self.target
        if not isinstance(target, DirectAllocator) or extent.storage is None:
            raise UnsupportedImage("the kernel cannot copy into this image")
        place = (extent.storage_offset or 0) - extent.offset
        for guest, host, length in target.allocate(offset, end - offset):
            copy_range(extent.storage, place + guest, target.direct_storage, host, length)

    def _copy(self, offset: int, end: int, chunk: int, unit: int) -> None:
        for at, stop in cut(offset, end, chunk):
            piece = self._searched(at, stop, unit)
            with contextlib.nullcontext() if self.target.storage.is_remote else self._turn:
                self._write(at, piece)

    def _searched(self, offset: int, end: int, unit: int) -> _Piece:
        chunk = self._read(offset, end)
        whole = [(0, len(chunk.view))]
        return _Piece(chunk, list(data_runs(chunk.view, unit)) if self.zero_unit else whole)

    def _read(self, offset: int, end: int) -> _Chunk:
        chunk = self._chunk(end - offset)
        try:
            self.source.pread_into(offset, chunk.view)
        except (ImageIoError, CorruptImage):
            if not self.salvage:
                raise
            for at, stop in cut(offset, end, _SALVAGED):
                self._salvage(at, chunk.view[at - offset : stop - offset])
        return chunk

    def _salvage(self, offset: int, view: memoryview) -> None:
        try:
            self.source.pread_into(offset, view)
        except (ImageIoError, CorruptImage):
            self.lost.append((offset, len(view)))
            view[:] = bytes(len(view))

    def _chunk(self, length: int) -> _Chunk:
        try:
            buffer = self._buffers.pop()
        except IndexError:  # also where another thread was quicker
            buffer = None
        if buffer is None or len(buffer) < length:
            buffer = _large_pages(length)
        return _Chunk(buffer, memoryview(buffer)[:length])

    def _write(self, offset: int, piece: _Piece) -> None:
        at, view = 0, piece.chunk.view
        for start, end in piece.runs:
            self._zero(offset + at, offset + start)
            self.target.pwrite(offset + start, view[start:end])
            at = end
        self._zero(offset + at, offset + len(view))
        self._buffers.append(piece.chunk.buffer)

    def _packed(self, compress: Compress, offset: int, end: int, unit: int) -> _Packed:
        chunk = self._read(offset, end)
        units: list[tuple[int, bytes | None, memoryview]] = []
        for at in range(0, len(chunk.view), unit):
            plain = chunk.view[at : at + unit]
            if self.zero_unit and is_zero(plain):
                units.append((offset + at, None, plain))
            else:
                whole = plain if len(plain) == unit else bytes(plain).ljust(unit, b"\0")
                units.append((offset + at, compress(whole), plain))
        return _Packed(chunk, units)

    def _write_packed(self, target: CompressedWriter, done: _Packed) -> None:
        units: list[tuple[int, bytes, memoryview]] = []
        for offset, packed, plain in done.units:
            if packed is not None:
                units.append((offset, packed, plain))
            elif self.writes_zeros:
                self._zero(offset, offset + len(plain))
        target.write_units(units)
        self._buffers.append(done.chunk.buffer)


class _Chunk(NamedTuple):
    """A piece of the disk in memory."""

    buffer: mmap.mmap
    view: memoryview


class _Piece(NamedTuple):
    """A piece of the disk, and the (start, end) of what in it is to be written as data."""

    chunk: _Chunk
    runs: list[tuple[int, int]]


class _Packed(NamedTuple):
    """A piece of the disk, cut into units: (offset, compressed or None for zeros, plain)."""

    chunk: _Chunk
    units: list[tuple[int, bytes | None, memoryview]]


def _whole(length: int, unit: int) -> int:
    """Return how much to do at once: some whole units, ``length`` bytes if they are smaller."""
    return max(length // unit, 1) * unit


def _large_pages(length: int) -> mmap.mmap:
    """Return memory for a chunk, in large pages where the kernel has some: they copy faster."""
    memory = mmap.mmap(-1, length)
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _is_heavy(extent: Extent) -> bool:
    return extent.compressed or (extent.storage is not None and extent.storage.is_remote)


def _joins(last: Span, span: Span) -> bool:
    return (
        last.end == span.offset
        and last.is_data == span.is_data
        and last.verbatim is None
        and span.verbatim is None
        and last.end - last.offset < _LONGEST_SPAN
    )
