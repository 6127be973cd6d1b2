"""Refcounts: how often each host cluster is used, and the allocation of free ones.

A table of offsets leads to blocks of counts, 1 to 64 bits wide. Counts of newly allocated
clusters rise in the cached blocks at once. A freed cluster keeps its count until
``settle`` is called, which the commit does only when nothing on disk refers to it any more
(``volume.py``): so it cannot be handed out again too early.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from wirt.errors import CorruptImage, UnsupportedImage
from wirt.image.base import Storage
from wirt.image.formats.qcow2.guard import REFBLOCK, REFTABLE, Guard
from wirt.image.formats.qcow2.header import MAX_REFTABLE_BYTES, Header
from wirt.image.formats.qcow2.l2 import Table
from wirt.image.formats.qcow2.widths import pack_counts, unpack_counts
from wirt.image.formats.qcow2.words import read_table, read_words

BLOCK_OFFSET = ~0x1FF & ((1 << 64) - 1)
_CACHE_BYTES = 4 << 20


class Block(Table):
    """A refcount block; ``words`` are counts, packed to the image's width when written."""

    __slots__ = ("order",)

    def __init__(self, offset: int, words: array[int], order: int, *, fresh: bool) -> None:
        super().__init__(offset, words, fresh=fresh)
        self.order = order

    def changed(self) -> tuple[int, bytes]:
        per_sector = 4096 >> self.order
        low = self.low // per_sector * per_sector
        high = min(-(-self.high // per_sector) * per_sector, len(self.words))
        return self.offset + (low << self.order) // 8, pack_counts(self.words[low:high], self.order)


class Refcounts:
    def __init__(self, storage: Storage, header: Header, guard: Guard) -> None:
        self._storage = storage
        self._header = header
        self._guard = guard
        self.per_block = header.refcounts_per_block
        self.largest = (1 << (1 << header.refcount_order)) - 1
        self._blocks: dict[int, Block] = {}
        self._hint = 0
        self.released: list[tuple[int, int]] = []
        size = header.reftable_clusters << header.cluster_bits
        words = read_words(storage, header.reftable_offset, size, "refcount table")
        self.table = Table(header.reftable_offset, words, fresh=False)

    def register(self) -> None:
        """Tell the guard where the table and the blocks lie."""
        self._guard.add(REFTABLE, self.table.offset, len(self.table.words) * 8)
        for entry in self.table.words:
            if entry:
                self._guard.add(REFBLOCK, self._block_offset(entry))

    def _block_offset(self, entry: int) -> int:
        offset = entry & BLOCK_OFFSET
        if offset & (self._header.cluster_size - 1):
            raise CorruptImage("a refcount block is not aligned to a cluster", offset=offset)
        return offset

    def block(self, index: int) -> Block | None:
        """Return the block of that index, or None where there is none."""
        found = self._blocks.get(index)
        if found is not None:
            return found
        words = self.table.words
        entry = words[index] if index < len(words) else 0
        if not entry:
            return None
        offset = self._block_offset(entry)
        raw = read_table(self._storage, offset, self._header.cluster_size, "refcount block")
        order = self._header.refcount_order
        self._make_room()
        block = self._blocks[index] = Block(offset, unpack_counts(raw, order), order, fresh=False)
        return block

    def _make_room(self) -> None:
        most = max(4, _CACHE_BYTES // self._header.cluster_size)
        if len(self._blocks) < most:
            return
        for index in [i for i, block in self._blocks.items() if not block.dirty]:
            del self._blocks[index]

    def get(self, cluster: int) -> int:
        block = self.block(cluster // self.per_block)
        return block.words[cluster % self.per_block] if block else 0

    def dirty_blocks(self) -> Iterator[Block]:
        return (block for block in list(self._blocks.values()) if block.dirty)

    def forget(self) -> None:
        """Drop the cache: the blocks were replaced on disk."""
        self._blocks.clear()

    # Changing counts

    def add(self, cluster: int, change: int, count: int = 1) -> None:
        """Change the counts of ``count`` clusters at once in the cache."""
        for number in range(cluster, cluster + count):
            block = self.block(number // self.per_block)
            slot = number % self.per_block
            value = (block.words[slot] if block else 0) + change
            if block is None or value < 0:
                raise CorruptImage(f"cluster {number} is freed although it is free")
            if value > self.largest:
                raise UnsupportedImage("a cluster is used more often than its refcount can say")
            block.words[slot] = value
            block.touch(slot, slot + 1)

    def release(self, cluster: int, count: int = 1) -> None:
        """Give ``count`` clusters back once the commit has made that safe."""
        if self.released and sum(self.released[-1]) == cluster:
            self.released[-1] = (self.released[-1][0], self.released[-1][1] + count)
        else:
            self.released.append((cluster, count))

    def settle(self) -> list[tuple[int, int]]:
        """Lower the counts of all released clusters; returns the rows that became free."""
        freed: list[tuple[int, int]] = []
        released, self.released = self.released, []
        for cluster, count in released:
            for first, part in self._by_block(cluster, count):
                freed += self._lower(first, part)
        if freed:
            self._hint = min(self._hint, min(freed)[0])
        return freed

    def _by_block(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """Split a row of clusters where refcount blocks end."""
        while count:
            part = min(count, self.per_block - first % self.per_block)
            yield first, part
            first, count = first + part, count - part

    def _lower(self, first: int, count: int) -> list[tuple[int, int]]:
        """Lower the counts of a row inside one block; returns what became free."""
        block, slot = self.block(first // self.per_block), first % self.per_block
        ones = array(block.words.typecode, [1]) * count if block else None
        if block is not None and block.words[slot : slot + count] == ones:
            block.words[slot : slot + count] = array(block.words.typecode, [0]) * count
            block.touch(slot, slot + count)
            return [(first, count)]
        self.add(first, -1, count)
        return [(number, 1) for number in range(first, first + count) if not self.get(number)]

    # Allocation

    def allocate(self, want: int) -> tuple[int, int]:
        """Allocate up to ``want`` clusters in a row: returns (first, count ≥ 1)."""
        first = self._next_free(self._hint)
        block = self.block(first // self.per_block)
        slot = first % self.per_block
        most = min(want, self.per_block - slot)
        if block is None:
            return self.allocate_exact(most), most
        count = _zeros_from(block.words, slot, most)
        self._refuse_metadata(first, count)
        self._take(first, count)
        self._hint = first + count
        return first, count

    def allocate_exact(self, count: int) -> int:
        """Allocate ``count`` clusters in one row, with the blocks that must count them."""
        first = self._next_free(self._hint)
        while True:
            extra = self._overhead(first, count)
            clash = self._last_used(first, count + sum(extra))
            if clash is None:
                break
            first = self._next_free(clash + 1)
        self._refuse_metadata(first, count + sum(extra))
        self._extend(first + count, first, *extra)
        self._take(first, count)
        if first == self._hint or count == 1:
            self._hint = first + count
        return first

    def _refuse_metadata(self, first: int, count: int) -> None:
        """A "free" cluster that holds metadata means that the refcounts are wrong."""
        bits = self._header.cluster_bits
        self._guard.check(first << bits, count << bits)

    def _next_free(self, start: int) -> int:
        index, slot = divmod(start, self.per_block)
        while (block := self.block(index)) is not None:
            try:
                return index * self.per_block + block.words.index(0, slot)
            except ValueError:
                index, slot = index + 1, 0
        return index * self.per_block + slot

    def _last_used(self, first: int, count: int) -> int | None:
        for number in range(first + count - 1, first - 1, -1):
            if self.get(number):
                return number
        return None

    def _overhead(self, first: int, count: int) -> tuple[int, int]:
        """Return how many new blocks and refcount table clusters the row needs behind it."""
        blocks = table = 0
        while True:
            last = (first + count + blocks + table - 1) // self.per_block
            need = sum(1 for i in range(first // self.per_block, last + 1) if self.block(i) is None)
            grown = self._table_clusters(last + 1)
            if (need, grown) == (blocks, table):
                return blocks, table
            blocks, table = max(need, blocks), max(grown, table)

    def _table_clusters(self, entries: int) -> int:
        """Clusters of a new refcount table for ``entries`` blocks, 0 if the old one does."""
        if entries <= len(self.table.words):
            return 0
        size = max(entries, len(self.table.words) * 3 // 2) * 8
        if entries * 8 > MAX_REFTABLE_BYTES:
            raise UnsupportedImage("the image cannot grow further: its refcount table is full")
        size = min(size, MAX_REFTABLE_BYTES)
        return -(-size // self._header.cluster_size)

    def _extend(self, place: int, first: int, blocks: int, table: int) -> None:
        """Create the missing blocks (and a larger table) at cluster ``place``."""
        bits = self._header.cluster_bits
        if not blocks:
            return
        last = (place + blocks + table - 1) // self.per_block
        if table:
            self._move_table(place + blocks, table)
        spot = place
        order = self._header.refcount_order
        for index in range(first // self.per_block, last + 1):
            if self.block(index) is None:
                words = unpack_counts(bytes(self._header.cluster_size), order)
                self._guard.add(REFBLOCK, spot << bits)
                self._blocks[index] = Block(spot << bits, words, order, fresh=True)
                self.table.words[index] = spot << bits
                self.table.touch(index, index + 1)
                spot += 1
        self._take(place, blocks + table)

    def _move_table(self, cluster: int, count: int) -> None:
        old = self.table
        bits = self._header.cluster_bits
        words = array("Q", old.words)
        words.frombytes(bytes((count << bits) - len(words) * 8))
        self._guard.add(REFTABLE, cluster << bits, count << bits)
        self.table = Table(cluster << bits, words, fresh=True)
        if not old.fresh:
            self._guard.drop(old.offset, len(old.words) * 8)
        self.release(old.offset >> bits, len(old.words) * 8 >> bits)

    def _take(self, first: int, count: int) -> None:
        for start, part in self._by_block(first, count):
            block, slot = self.block(start // self.per_block), start % self.per_block
            if block is None:
                raise CorruptImage("a refcount block vanished", offset=start)
            block.words[slot : slot + part] = array(block.words.typecode, [1]) * part
            block.touch(slot, slot + part)


def _zeros_from(words: array[int], start: int, most: int) -> int:
    """Return how many words from ``start`` are zero, at most ``most``."""
    chunk = words[start : start + most]
    if not any(chunk):
        return len(chunk)
    return next(i for i, value in enumerate(chunk) if value)
