"""The tally of large images, with numpy."""

from __future__ import annotations

from array import array

import numpy as np

from wirt.errors import CorruptImage
from wirt.image.formats.qcow2.header import Header
from wirt.image.formats.qcow2.l2 import COMPRESSED, COPIED, OFFSET
from wirt.image.formats.qcow2.refcount import Refcounts
from wirt.image.formats.qcow2.tally import Tally, rows


class VectorTally(Tally):
    def __init__(self, header: Header, refcounts: Refcounts, file_size: int) -> None:
        super().__init__(header, refcounts)
        clusters = (file_size >> header.cluster_bits) + 2
        blocks = -(-clusters // self.per_block)
        self._sums = np.zeros(blocks * self.per_block, dtype=np.int32)

    def add_cluster(self, cluster: int, change: int) -> None:
        if cluster >= len(self._sums):
            raise CorruptImage("a reference to a cluster past the end of the file")
        self._sums[cluster] += change

    def add_table(self, words: array[int], change: int) -> None:
        entries = np.frombuffer(words, dtype=np.uint64)
        if bool((entries & np.uint64(COMPRESSED)).any()):
            super().add_table(words, change)
            return
        numbers = self._numbers(entries)
        numbers = numbers[numbers != 0]
        if not len(numbers):
            return
        if int(numbers.max()) >= len(self._sums):
            raise CorruptImage("a reference to a cluster past the end of the file")
        if len(numbers) > 1 and bool((np.diff(numbers) == 1).all()):
            self._sums[numbers[0] : numbers[-1] + 1] += change
        else:
            np.add.at(self._sums, numbers, change)

    def _numbers(self, entries: np.ndarray) -> np.ndarray:
        return ((entries & np.uint64(OFFSET)) >> np.uint64(self.bits)).astype(np.int64)

    def blocks(self) -> list[int]:
        by_block = self._sums.reshape(-1, self.per_block)
        return [int(index) for index in np.flatnonzero(by_block.any(axis=1))]

    def _slice(self, index: int) -> np.ndarray:
        return self._sums[index * self.per_block : (index + 1) * self.per_block]

    def final(self, index: int) -> array[int]:
        words = self._stored(index)
        counts = np.frombuffer(words, dtype=words.typecode)
        # 64-bit counts near the top cannot come about by references.
        wide = np.minimum(counts.astype(np.uint64), np.uint64(1 << 62)).astype(np.int64)
        sums = wide + self._slice(index)
        changed = self._slice(index) != 0
        self.refuse(int(sums[changed].min(initial=0)), int(sums[changed].max(initial=0)))
        counts[changed] = sums[changed]
        return words

    def freed(self, index: int, words: array[int]) -> list[tuple[int, int]]:
        counts = np.frombuffer(words, dtype=words.typecode)
        free = np.flatnonzero((self._slice(index) < 0) & (counts == 0))
        return rows((free + index * self.per_block).tolist())

    def count(self, cluster: int) -> int:
        change = int(self._sums[cluster]) if cluster < len(self._sums) else 0
        return self.refcounts.get(cluster) + change

    def own(self, words: array[int]) -> bool:
        entries = np.frombuffer(words, dtype=np.uint64)
        numbers = self._numbers(entries)
        shared = (entries & np.uint64(COPIED | COMPRESSED)) == 0
        slots = np.flatnonzero(shared & (numbers != 0))
        alone = np.zeros(len(entries), dtype=bool)
        for index in np.unique(numbers[slots] // self.per_block).tolist():
            block = self.refcounts.block(index)
            if block is None:
                continue
            here = slots[numbers[slots] // self.per_block == index]
            counts = np.frombuffer(block.words, dtype=block.words.typecode)
            places = numbers[here]
            inside = places < len(self._sums)
            here, places = here[inside], places[inside]
            sums = counts[places % self.per_block].astype(np.int64) + self._sums[places]
            alone[here[sums == 1]] = True
        if not alone.any():
            return False
        entries[alone] |= np.uint64(COPIED)
        return True
