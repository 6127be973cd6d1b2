"""Changes too large for the ordered commit: everything new beside the old, then one switch.

A snapshot changes refcounts, COPIED flags, the L1 and the snapshot table together, and no
order of writes in place is consistent in between. So the new tables, the refcount blocks
that change and a new refcount table are written into clusters that nothing refers to yet.
Then the first header sector, which names them all, is written: it is old or new, never
half. A power cut before leaves the old image with leaked clusters, one after it the new.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import contextmanager

from wirt.errors import ImageError
from wirt.image.formats.qcow2.tally import make_tally
from wirt.image.formats.qcow2.volume import Volume
from wirt.image.formats.qcow2.widths import pack_counts
from wirt.image.formats.qcow2.words import words_to


class Shadow:
    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.tally = make_tally(volume.header, volume.refcounts, volume.storage.size())
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
        blocks = self.tally.blocks()
        for index in blocks:
            self.tally.final(index)
        places = [self.reserve(1) for _ in blocks]
        table = self._reserve_table() if blocks else 0
        volume.commit()
        old: list[tuple[int, int]] = []
        freed: list[tuple[int, int]] = []
        if blocks:
            old.append((header.reftable_offset, header.reftable_clusters))
            offsets = array("Q", volume.refcounts.table.words)
            for index, place in zip(blocks, places, strict=True):
                words = self.tally.final(index)
                freed += self.tally.freed(index, words)
                self.write(place << header.cluster_bits, pack_counts(words, header.refcount_order))
                old.append((offsets[index], 1))
                offsets[index] = place << header.cluster_bits
            self.write(table << header.cluster_bits, words_to(offsets))
            fields["reftable_offset"] = table << header.cluster_bits
        volume.barrier()
        self._taken.clear()
        for name, value in fields.items():
            setattr(header, name, value)
        volume.header_store.write_first_sector()
        volume.barrier()
        volume.reload()
        volume.freed(freed)
        for offset, count in old:
            volume.refcounts.release(offset >> header.cluster_bits, count)
        volume.commit()

    def _reserve_table(self) -> int:
        """Reserve room for a refcount table of the size that it has after that."""
        while True:
            words = self.volume.refcounts.table.words
            cluster = self.reserve(len(words) * 8 >> self.volume.header.cluster_bits)
            if self.volume.refcounts.table.words is words:
                return cluster


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
