"""Changes of refcounts, summed up over whole trees of tables before any is made."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable

from wirt.errors import CorruptImage, UnsupportedImage
from wirt.image.formats.qcow2.compressed import packed_extent
from wirt.image.formats.qcow2.header import Header
from wirt.image.formats.qcow2.l2 import COMPRESSED, COPIED, OFFSET
from wirt.image.formats.qcow2.refcount import Refcounts

_VECTOR_CLUSTERS = 1 << 16


def make_tally(header: Header, refcounts: Refcounts, file_size: int) -> Tally:
    """Return the tally that suits the size of the file."""
    if file_size >> header.cluster_bits < _VECTOR_CLUSTERS or header.extended_l2:
        return Tally(header, refcounts)
    from wirt.image.formats.qcow2.vector_tally import VectorTally

    return VectorTally(header, refcounts, file_size)


class Tally:
    """What the refcounts will be, block by block."""

    def __init__(self, header: Header, refcounts: Refcounts) -> None:
        self.bits = header.cluster_bits
        self.refcounts = refcounts
        self.per_block = refcounts.per_block
        self._stride = 2 if header.extended_l2 else 1
        self._changes: dict[int, dict[int, int]] = defaultdict(dict)

    def add(self, offset: int, length: int, change: int) -> None:
        """Change the counts of the clusters of a byte range."""
        if length > 0:
            first, last = offset >> self.bits, (offset + length - 1) >> self.bits
            for cluster in range(first, last + 1):
                self.add_cluster(cluster, change)

    def add_cluster(self, cluster: int, change: int) -> None:
        block, slot = divmod(cluster, self.per_block)
        slots = self._changes[block]
        slots[slot] = slots.get(slot, 0) + change

    def add_table(self, words: array[int], change: int) -> None:
        """Change the counts of everything that an L2 table refers to."""
        for entry in words[:: self._stride]:
            if entry & COMPRESSED:
                self.add(*packed_extent(entry, self.bits), change)
            elif entry & OFFSET:
                self.add_cluster((entry & OFFSET) >> self.bits, change)

    def blocks(self) -> list[int]:
        """Return the indices of the refcount blocks that change."""
        return [block for block, slots in self._changes.items() if any(slots.values())]

    def final(self, index: int) -> array[int]:
        """Return the counts of a block after the change.

        Raises CorruptImage if one would fall below zero, UnsupportedImage if one would
        become too large for its width.
        """
        words = self._stored(index)
        for slot, change in self._changes[index].items():
            self.refuse(words[slot] + change, words[slot] + change)
            words[slot] += change
        return words

    def _stored(self, index: int) -> array[int]:
        block = self.refcounts.block(index)
        if block is None:
            raise CorruptImage("a cluster is in use that no refcount block counts")
        return array(block.words.typecode, block.words)

    def refuse(self, lowest: int, highest: int) -> None:
        if lowest < 0:
            raise CorruptImage("a cluster would be freed although it is free")
        if highest > self.refcounts.largest:
            raise UnsupportedImage(
                "the image's refcounts are too narrow for another reference",
                hint="create the image with a larger refcount_bits",
            )

    def freed(self, index: int, words: array[int]) -> list[tuple[int, int]]:
        """Return the rows (first cluster, count) that ``final`` left without a reference."""
        first = index * self.per_block
        free = sorted(s for s, c in self._changes[index].items() if c < 0 and not words[s])
        return rows(first + slot for slot in free)

    def count(self, cluster: int) -> int:
        """Return what the count of one cluster will be."""
        block, slot = divmod(cluster, self.per_block)
        return self.refcounts.get(cluster) + self._changes.get(block, {}).get(slot, 0)

    def own(self, words: array[int]) -> bool:
        """Set COPIED in an L2 table wherever the count will be one; tells if any was."""
        changed = False
        for slot in range(0, len(words), self._stride):
            entry = words[slot]
            if entry & (COPIED | COMPRESSED) or not entry & OFFSET:
                continue
            if self.count((entry & OFFSET) >> self.bits) == 1:
                words[slot] = entry | COPIED
                changed = True
        return changed


def rows(clusters: Iterable[int]) -> list[tuple[int, int]]:
    """Join ascending cluster numbers to (first, count)."""
    found: list[tuple[int, int]] = []
    for cluster in clusters:
        if found and sum(found[-1]) == cluster:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((cluster, 1))
    return found
