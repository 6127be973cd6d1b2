"""A whole qcow2 image in one go, front to back, for a pipe.

All metadata comes first, so it must be known before the first data: which clusters hold
data is taken from the source's extents. The layout is header, refcount table, refcount
blocks, L1, L2 tables, data, each cluster in guest order.
"""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate, islice

from wirt.errors import UsageError
from wirt.image.base import ExtentKind, Image
from wirt.image.extents import chain_extents
from wirt.image.formats.qcow2.create import (
    CreateOptions,
    count_typecode,
    new_header,
    refcount_layout,
)
from wirt.image.formats.qcow2.header import Header
from wirt.image.formats.qcow2.header_store import pack_header
from wirt.image.formats.qcow2.l2 import COPIED
from wirt.image.formats.qcow2.widths import pack_counts
from wirt.image.formats.qcow2.words import words_to
from wirt.image.pipeline import cut
from wirt.image.progress import Progress

_CHUNK = 1 << 20
Write = Callable[[bytes | memoryview], None]


def write_stream(
    source: Image, options: Mapping[str, str], write: Write, progress: Progress
) -> None:
    """Write ``source`` as a qcow2 image. Raises UsageError for what a stream cannot hold."""
    wanted = CreateOptions.parse(options)
    if wanted.data_file or wanted.encrypted or wanted.extended_l2 or wanted.backing_file:
        raise UsageError(
            "a stream holds plain qcow2 without other files, encryption or subclusters",
            hint="write to a file",
        )
    if wanted.preallocation != "off":
        raise UsageError("a stream cannot be preallocated", hint="write to a file")
    layout = _Layout(source, new_header(source.virtual_size, wanted))
    for piece in layout.metadata():
        write(piece)
    for offset, length in layout.data():
        _copy(source, offset, length, write)
        progress(min(offset + length, source.virtual_size), source.virtual_size)


class _Layout:
    """Where everything lies, in clusters."""

    def __init__(self, source: Image, header: Header) -> None:
        self._header = header
        size = self._cluster = header.cluster_size
        self._runs = list(_data_clusters(source, size))
        per_table = size // 8
        self._tables = _tables(self._runs, per_table)
        l1 = -(-header.l1_size * 8 // size)
        data = sum(end - start for start, end in self._runs)
        self._reftable, self._blocks = refcount_layout(1 + l1 + len(self._tables) + data, header)
        self._l1_at = 1 + self._reftable + self._blocks
        self._l2_at = self._l1_at + l1
        self._data_at = self._l2_at + len(self._tables)
        self._used = self._data_at + data
        self._starts = [start for start, _ in self._runs]
        lengths = (end - start for start, end in self._runs)
        self._places = list(accumulate(lengths, initial=self._data_at))[:-1]
        header.reftable_offset, header.reftable_clusters = size, self._reftable
        header.l1_offset = self._l1_at * size if l1 else 0

    def metadata(self) -> Iterator[bytes]:
        """Yield all that precedes the data."""
        yield self._padded(pack_header(self._header))
        first = 1 + self._reftable
        blocks = range(first * self._cluster, (first + self._blocks) * self._cluster, self._cluster)
        yield self._padded(words_to(array("Q", blocks)))
        yield from self._refcounts()
        yield self._level1()
        for index in self._tables:
            yield self._level2(index)

    def _padded(self, data: bytes) -> bytes:
        return data + bytes(-len(data) % self._cluster)

    def _refcounts(self) -> Iterator[bytes]:
        per_block = self._header.refcounts_per_block
        code = count_typecode(self._header)
        for start in range(0, self._blocks * per_block, per_block):
            ones = max(0, min(per_block, self._used - start))
            counts = array(code, [1]) * ones
            counts.extend(array(code, [0]) * (per_block - ones))
            yield pack_counts(counts, self._header.refcount_order)

    def _level1(self) -> bytes:
        words = array("Q", bytes(8 * self._header.l1_size))
        for number, index in enumerate(self._tables):
            words[index] = (self._l2_at + number) * self._cluster | COPIED
        return self._padded(words_to(words))

    def _level2(self, index: int) -> bytes:
        per_table = self._cluster // 8
        words = array("Q", bytes(self._cluster))
        low, high = index * per_table, (index + 1) * per_table
        first = max(0, bisect.bisect_right(self._starts, low) - 1)
        for (start, end), place in zip(
            islice(self._runs, first, None), islice(self._places, first, None), strict=True
        ):
            if start >= high:
                break
            for cluster in range(max(start, low), min(end, high)):
                words[cluster - low] = (place + cluster - start) * self._cluster | COPIED
        return words_to(words)

    def data(self) -> Iterator[tuple[int, int]]:
        """Yield (guest offset, length) of the clusters with data, in order."""
        for start, end in self._runs:
            for at, stop in cut(start * self._cluster, end * self._cluster, _CHUNK):
                yield at, stop - at


def _data_clusters(source: Image, size: int) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of the runs of clusters that hold data."""
    first = end = 0
    for extent in chain_extents(source):
        if extent.kind is not ExtentKind.DATA:
            continue
        if extent.offset // size > end:
            if end > first:
                yield first, end
            first = extent.offset // size
        end = -(-extent.end // size)
    if end > first:
        yield first, end


def _tables(runs: list[tuple[int, int]], per_table: int) -> list[int]:
    """Return the indexes of the L2 tables that are needed."""
    found: list[int] = []
    for start, end in runs:
        low = start // per_table
        if found and low <= found[-1]:
            low = found[-1] + 1
        found.extend(range(low, (end - 1) // per_table + 1))
    return found


def _copy(source: Image, offset: int, length: int, write: Write) -> None:
    """Write guest bytes; behind the end of the disk there are zeros."""
    inside = min(length, source.virtual_size - offset)
    write(source.pread(offset, inside))
    if inside < length:
        write(bytes(length - inside))
