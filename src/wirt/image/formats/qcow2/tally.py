"""Changes of refcounts, summed up over whole trees of tables before any is made."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator

from wirt.image.formats.qcow2.compressed import packed_extent
from wirt.image.formats.qcow2.header import Header
from wirt.image.formats.qcow2.l2 import COMPRESSED, OFFSET


class Tally:
    """Maps cluster to change."""

    def __init__(self, header: Header) -> None:
        self._bits = header.cluster_bits
        self._stride = 2 if header.extended_l2 else 1
        self._changes: Counter[int] = Counter()

    def add(self, offset: int, length: int, change: int) -> None:
        """Change the counts of the clusters of a byte range."""
        if length > 0:
            first, last = offset >> self._bits, (offset + length - 1) >> self._bits
            for cluster in range(first, last + 1):
                self._changes[cluster] += change

    def add_table(self, words: array[int], change: int) -> None:
        """Change the counts of everything that an L2 table refers to."""
        changes, bits = self._changes, self._bits
        for entry in words[:: self._stride]:
            if entry & COMPRESSED:
                self.add(*packed_extent(entry, bits), change)
            elif entry & OFFSET:
                changes[(entry & OFFSET) >> bits] += change

    def __getitem__(self, cluster: int) -> int:
        return self._changes.get(cluster, 0)

    def items(self) -> Iterator[tuple[int, int]]:
        """Yield (cluster, change) of all that change."""
        return ((cluster, change) for cluster, change in self._changes.items() if change)
