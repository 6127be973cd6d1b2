"""The L1 table and a cache of L2 tables: where guest bytes lie."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator

from wirt.errors import CorruptImage
from wirt.image.base import Storage
from wirt.image.formats.qcow2.header import Header
from wirt.image.formats.qcow2.l2 import (
    ALL_ALLOCATED,
    ALL_ZERO,
    COMPRESSED,
    COPIED,
    NORMAL,
    OFFSET,
    PACKED,
    UNALLOCATED,
    WITH_HOST,
    ZERO,
    ZERO_ALLOCATED,
    ZERO_PLAIN,
    Run,
    Table,
)
from wirt.image.formats.qcow2.words import read_words

_CACHE_BYTES = 8 << 20
_VECTOR_CLUSTERS = 1 << 19
_ROW = 4096
_AT_FIRST = 8  # a reader asks for so many clusters most of the time
_WHOLE = frozenset((0, ALL_ALLOCATED, ALL_ZERO))


def load_l1(storage: Storage, offset: int, size: int) -> Table:
    """Read an L1 table of ``size`` entries. The caller has bounded ``size``."""
    return Table(offset, read_words(storage, offset, size * 8, "L1 table"), fresh=False)


def load_l2(storage: Storage, header: Header, entry: int) -> array[int]:
    """Read the L2 table that an L1 entry refers to."""
    return read_words(storage, entry & OFFSET, header.cluster_size, "L2 table")


class Mapping:
    def __init__(
        self, storage: Storage, header: Header, l1: Table, tick: Callable[[], None]
    ) -> None:
        """``tick`` is called for each table that is looked at: it ends what takes too long."""
        self._tick = tick
        self._storage = storage
        self._header = header
        self.l1 = l1
        self.stride = 2 if header.extended_l2 else 1
        self.per_table = 1 << header.l2_bits
        self.shift = header.cluster_bits + header.l2_bits
        self._tables: dict[int, Table] = {}
        self._most = max(4, _CACHE_BYTES >> header.cluster_bits)

    def l2_offset(self, index: int) -> int:
        """Return the offset of L2 table ``index``, 0 if there is none."""
        if index >= len(self.l1.words):
            return 0
        offset = self.l1.words[index] & OFFSET
        if offset & (self._header.cluster_size - 1):
            raise CorruptImage("an L2 table is not aligned to a cluster", offset=offset)
        return offset

    def table(self, index: int) -> Table | None:
        """Return L2 table ``index`` of the L1, or None where none is allocated."""
        self._tick()
        offset = self.l2_offset(index)
        return self.table_at(offset) if offset else None

    def table_at(self, offset: int) -> Table:
        found = self._tables.pop(offset, None)
        if found is None:
            words = load_l2(self._storage, self._header, offset)
            found = Table(offset, words, fresh=False)
            self._make_room()
        self._tables[offset] = found
        return found

    def add_table(self, index: int, offset: int, words: array[int]) -> Table:
        """Hang a new L2 table into the L1; on disk it is linked by the commit."""
        self._make_room()
        table = self._tables[offset] = Table(offset, words, fresh=True)
        self.l1.words[index] = offset | COPIED
        self.l1.touch(index, index + 1)
        return table

    def drop_table(self, index: int) -> None:
        """Unhook L2 table ``index`` from the L1."""
        self._tables.pop(self.l2_offset(index), None)
        self.l1.words[index] = 0
        self.l1.touch(index, index + 1)

    def _make_room(self) -> None:
        if len(self._tables) < self._most:
            return
        clean = [offset for offset, table in self._tables.items() if not table.dirty]
        for offset in clean[: max(1, len(clean) // 2)]:
            del self._tables[offset]

    def dirty_tables(self) -> list[Table]:
        return [table for table in list(self._tables.values()) if table.dirty]

    def settle(self) -> None:
        """All tables are on disk and linked."""
        for table in self._tables.values():
            table.fresh = False

    def forget(self, l1: Table) -> None:
        """Start over with another L1 table."""
        self.l1 = l1
        self._tables.clear()

    def crowded(self, most_bytes: int) -> bool:
        """True when the tables in memory exceed ``most_bytes``."""
        return len(self._tables) << self._header.cluster_bits > most_bytes

    # Reading

    def runs(self, offset: int, length: int) -> Iterator[Run]:
        """Yield the states of a range, merged where state and place continue."""
        end = offset + length
        vector = length >> self._header.cluster_bits >= _VECTOR_CLUSTERS
        pending: Run | None = None
        while offset < end:
            index = offset >> self.shift
            stop = min(end, self._table_end(index) << self.shift)
            for run in self._table_runs(index, offset, stop, vector=vector):
                if pending is not None and _continues(pending, run):
                    pending = pending._replace(length=pending.length + run.length)
                    continue
                if pending is not None:
                    yield pending
                pending = run
            offset = stop
        if pending is not None:
            yield pending

    def _table_end(self, index: int) -> int:
        """Return ``index`` + 1, or where a row of absent L2 tables ends."""
        words = self.l1.words
        after = index + 1
        if index < len(words) and words[index]:
            return after
        while after < len(words) and not any(words[after : after + _ROW]):
            after += _ROW
        return min(after, max(len(words), index + 1))

    def _table_runs(self, index: int, start: int, stop: int, *, vector: bool) -> Iterator[Run]:
        table = self.table(index)
        if table is None:
            return iter((Run(start, stop - start, UNALLOCATED, 0),))
        if self.stride == 2:
            return self._subcluster_runs(table, start, stop)
        if vector:
            from wirt.image.formats.qcow2.vector import table_runs

            return table_runs(table.words, self._header, start, stop)
        return self._cluster_runs(table, start, stop)

    def _cluster_runs(self, table: Table, start: int, stop: int) -> Iterator[Run]:
        header = self._header
        size, bits = header.cluster_size, header.cluster_bits
        version2, data_file = header.version == 2, header.has_data_file
        words = table.words
        offset = start
        while offset < stop:
            index = offset >> bits & self.per_table - 1
            entry = words[index]
            inside = offset & size - 1
            most = (stop - 1 >> bits) - (offset >> bits) + 1
            if entry == 0:
                kind, host, count = UNALLOCATED, 0, _in_a_row(words, index, most, 0)
            elif entry & COMPRESSED:
                kind, host, count = PACKED, entry, 1
            else:
                kind, host = classify(entry, version2=version2, data_file=data_file)
                if host & size - 1:
                    raise CorruptImage("a cluster is not aligned", offset=host)
                count = _in_a_row(words, index, most, size if kind in WITH_HOST else 0)
                host += inside if kind in WITH_HOST else 0
            length = min(count * size - inside, stop - offset)
            yield Run(offset, length, kind, host)
            offset += length

    def _subcluster_runs(self, table: Table, start: int, stop: int) -> Iterator[Run]:
        header = self._header
        size, bits, small = header.cluster_size, header.cluster_bits, header.subcluster_size
        offset = start
        while offset < stop:
            slot = (offset >> bits & self.per_table - 1) * 2
            entry, bitmap = table.words[slot], table.words[slot + 1]
            inside = offset & size - 1
            if entry & COMPRESSED:
                length = min(size - inside, stop - offset)
                yield Run(offset, length, PACKED, entry)
                offset += length
                continue
            host = self._host(entry)
            if not inside and stop - offset >= size and bitmap in _WHOLE:
                length = size
            else:
                length = min(small - inside % small, stop - offset)
            kind = subcluster_kind(bitmap, inside // small, self._has_host(entry))
            # A cluster with room for a subcluster that is not allocated has a host too.
            yield Run(offset, length, kind, host + inside if host or kind in WITH_HOST else 0)
            offset += length

    def _host(self, entry: int) -> int:
        host = entry & OFFSET
        if host & self._header.cluster_size - 1:
            raise CorruptImage("a cluster is not aligned", offset=host)
        return host

    def _has_host(self, entry: int) -> bool:
        return bool(entry & OFFSET) or (self._header.has_data_file and bool(entry & COPIED))


def _in_a_row(words: array[int], first: int, most: int, step: int) -> int:
    """Return how many entries from ``first`` on go up by ``step``; a few less after a break.

    Most clusters lie in a row: comparing many entries at once, and ever more of them, costs
    less than looking at each would, which costs more than copying its bytes.
    """
    entry = words[first]
    if step:
        most = min(most, (OFFSET - (entry & OFFSET)) // step + 1)
    count, ahead, more = 1, _AT_FIRST, True
    while ahead and count < most:
        ahead = min(ahead, most - count)
        start = entry + count * step
        row = array("Q", range(start, start + ahead * step, step) if step else [entry] * ahead)
        if words[first + count : first + count + ahead] == row:
            count += ahead
        else:
            more = False
        ahead = ahead * 2 if more else ahead // 2
    return count


def classify(entry: int, *, version2: bool, data_file: bool) -> tuple[int, int]:
    """Return (kind, host offset) of an uncompressed standard L2 entry."""
    host = entry & OFFSET
    has_host = host != 0 or (data_file and bool(entry & COPIED))
    if entry & ZERO:
        if version2:
            raise CorruptImage("a zero cluster in a version 2 image", offset=host)
        return (ZERO_ALLOCATED, host) if has_host else (ZERO_PLAIN, 0)
    return (NORMAL, host) if has_host else (UNALLOCATED, 0)


def subcluster_kind(bitmap: int, index: int, has_host: bool) -> int:
    """Return the state of subcluster ``index`` of an extended L2 entry."""
    allocated, zero = bitmap >> index & 1, bitmap >> (index + 32) & 1
    if allocated and (zero or not has_host):
        raise CorruptImage("a subcluster's bits contradict each other")
    if zero:
        return ZERO_ALLOCATED if has_host else ZERO_PLAIN
    return NORMAL if allocated else UNALLOCATED


def _continues(first: Run, second: Run) -> bool:
    if first.kind != second.kind or first.kind == PACKED:
        return False
    if first.kind not in WITH_HOST and not first.host and not second.host:
        return True
    return first.host + first.length == second.host
