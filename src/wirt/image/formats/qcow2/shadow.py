"""Changes too large for the ordered commit: everything new beside the old, then one switch.

A snapshot changes refcounts, COPIED flags, the L1 and the snapshot table together, and no
order of writes in place is consistent in between. So the new tables, the refcount blocks
that change and a new refcount table are written into clusters that nothing refers to yet.
Then the first header sector, which names them all, is written: it is old or new, never
half. A power cut before leaves the old image with leaked clusters, one after it the new.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from wirt.errors import CorruptImage, ImageError, UnsupportedImage
from wirt.image.formats.qcow2.tally import Tally
from wirt.image.formats.qcow2.volume import Volume
from wirt.image.formats.qcow2.widths import pack_counts
from wirt.image.formats.qcow2.words import words_to


class Shadow:
    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.tally = Tally(volume.header)
        self._taken: list[tuple[int, int]] = []

    def place(self, data: bytes) -> int:
        """Write ``data`` into new clusters; returns their offset, 0 for no data."""
        if not data:
            return 0
        size, bits = self.volume.header.cluster_size, self.volume.header.cluster_bits
        offset = self.reserve(-(-len(data) // size)) << bits
        self.write(offset, data)
        return offset

    def reserve(self, count: int) -> int:
        """Return the first of ``count`` new clusters in a row."""
        cluster = self.volume.refcounts.allocate_exact(count)
        self._taken.append((cluster, count))
        return cluster

    def write(self, offset: int, data: bytes) -> None:
        """Write whole clusters, padded with zeros."""
        padded = data + bytes(-len(data) % self.volume.header.cluster_size)
        self.volume.write_metadata("", offset, padded)

    def give_up(self) -> None:
        """Return all new clusters, if they were not switched to."""
        for cluster, count in self._taken:
            self.volume.refcounts.release(cluster, count)

    def switch(self, **fields: int) -> None:
        """Make the changed refcounts and the given header fields true at one stroke."""
        volume, header = self.volume, self.volume.header
        by_block = self._changes_by_block()
        places = [self.reserve(1) for _ in by_block]
        table = self._reserve_table() if by_block else 0
        volume.commit()
        old = [(header.reftable_offset, header.reftable_clusters)] if by_block else []
        if by_block:
            offsets = array("Q", volume.refcounts.table.words)
            for (index, changes), place in zip(by_block.items(), places, strict=True):
                old.append((offsets[index], 1))
                offsets[index] = place << header.cluster_bits
                self._write_block(index, changes, place)
            self.write(table << header.cluster_bits, words_to(offsets))
            fields["reftable_offset"] = table << header.cluster_bits
        volume.barrier()
        for name, value in fields.items():
            setattr(header, name, value)
        self._taken.clear()
        volume.header_store.write_first_sector()
        volume.barrier()
        self._settle(old)

    def _reserve_table(self) -> int:
        """Reserve room for a refcount table of the size that it has after that."""
        while True:
            words = self.volume.refcounts.table.words
            cluster = self.reserve(len(words) * 8 >> self.volume.header.cluster_bits)
            if self.volume.refcounts.table.words is words:
                return cluster

    def _changes_by_block(self) -> dict[int, list[tuple[int, int]]]:
        by_block: dict[int, list[tuple[int, int]]] = defaultdict(list)
        refcounts = self.volume.refcounts
        for cluster, change in self.tally.items():
            value = refcounts.get(cluster) + change
            counted = refcounts.block(cluster // refcounts.per_block) is not None
            if value < 0 or not counted:
                raise CorruptImage(f"the refcount of cluster {cluster} is too low")
            if value > refcounts.largest:
                raise UnsupportedImage(
                    "the image's refcounts are too narrow for another reference",
                    hint="create the image with a larger refcount_bits",
                )
            by_block[cluster // refcounts.per_block].append((cluster, change))
        return by_block

    def _write_block(self, index: int, changes: list[tuple[int, int]], place: int) -> None:
        refcounts, header = self.volume.refcounts, self.volume.header
        block = refcounts.block(index)
        if block is None:
            raise CorruptImage("a change of refcounts that are not stored")
        words = array(block.words.typecode, block.words)
        for cluster, change in changes:
            words[cluster % refcounts.per_block] += change
        self.write(place << header.cluster_bits, pack_counts(words, header.refcount_order))

    def _settle(self, old: list[tuple[int, int]]) -> None:
        """Read the new state back, free what held the old, and give space to the host."""
        volume, bits = self.volume, self.volume.header.cluster_bits
        volume.reload()
        free = sorted(c for c, _ in self.tally.items() if volume.refcounts.get(c) == 0)
        volume.freed(_rows(free))
        for offset, count in old:
            volume.refcounts.release(offset >> bits, count)
        volume.commit()


def _rows(clusters: list[int]) -> list[tuple[int, int]]:
    rows: list[tuple[int, int]] = []
    for cluster in clusters:
        if rows and sum(rows[-1]) == cluster:
            rows[-1] = (rows[-1][0], rows[-1][1] + 1)
        else:
            rows.append((cluster, 1))
    return rows


@contextmanager
def shadow(volume: Volume) -> Iterator[Shadow]:
    """Begin a change from a clean state; an error leaves the image as it was."""
    volume.commit()
    change = Shadow(volume)
    try:
        yield change
    except ImageError:
        change.give_up()
        raise
