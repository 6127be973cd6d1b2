"""Consistency check: are the refcounts and the COPIED flags what the tables say?

A *leak* wastes space (a refcount too high); a *corruption* endangers data (a refcount too
low, a wrong flag, a reference to nowhere). Messages are worded as qemu-img words them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from wirt.errors import CorruptImage, OutOfBounds, UsageError
from wirt.image.base import CheckResult
from wirt.image.formats.qcow2.bitmap_directory import directory_extent, read_directory
from wirt.image.formats.qcow2.census import Census
from wirt.image.formats.qcow2.extensions import CRYPTO
from wirt.image.formats.qcow2.header import CRYPT_LUKS
from wirt.image.formats.qcow2.l2 import COPIED, OFFSET
from wirt.image.formats.qcow2.refcount import BLOCK_OFFSET
from wirt.image.formats.qcow2.snapshot_table import read_snapshots
from wirt.image.formats.qcow2.volume import Volume
from wirt.image.formats.qcow2.widths import unpack_counts
from wirt.image.formats.qcow2.words import read_table, words_from

_VECTOR_CLUSTERS = 1 << 16
_MOST_CLUSTERS = 1 << 32


def check(volume: Volume, *, repair: str = "") -> CheckResult:
    """Check, and with ``repair`` = ``leaks`` or ``all`` put right what can be put right."""
    if repair not in {"", "leaks", "all"}:
        raise UsageError(f"cannot repair {repair!r}: choose leaks or all")
    if repair:
        from wirt.image.formats.qcow2.repair import run_repair

        return run_repair(volume, repair)
    return Inspection(volume).run()


class Inspection:
    """One pass over the image. ``rebuild`` is set when the refcounts need a new structure."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.header = volume.header
        self.result = CheckResult()
        self.rebuild = False
        self.census = self._new_census()
        self.result.total_clusters = -(-self.header.size // self.header.cluster_size)

    def _new_census(self) -> Census:
        size = self.volume.storage.size()
        clusters = size >> self.header.cluster_bits
        if clusters > _MOST_CLUSTERS:
            raise OutOfBounds("the file has too many clusters to be checked")
        if clusters < _VECTOR_CLUSTERS:
            return Census(self.header, size, self.result)
        from wirt.image.formats.qcow2.vector_census import VectorCensus

        return VectorCensus(self.header, size, self.result)

    def run(self) -> CheckResult:
        self.count()
        self.tell_miscopied("ERROR")
        return self.result

    def tell_miscopied(self, word: str) -> None:
        """Count COPIED flags that contradict the refcounts as corruptions, and say so."""
        for message in self.census.miscopied:
            self.census.wrong(f"{word} {message}")

    def count(self) -> CheckResult:
        """Check all but the COPIED flags, which a rebuild of the refcounts may put right."""
        self._load_stored()
        self.census.refer(0, self.header.cluster_size)
        self._walk_l1(self.header.l1_offset, self.header.l1_size, active=True)
        self._snapshots()
        self._crypto_header()
        self._bitmaps()
        self._refcount_structure()
        self._compare()
        self.result.image_end_offset = (self.census.highest() + 1) << self.header.cluster_bits
        return self.result

    def _read(self, offset: int, length: int, what: str) -> bytes | None:
        try:
            return read_table(self.volume.storage, offset, length, what)
        except CorruptImage as error:
            self.census.wrong(f"ERROR: {error.message}")
            return None

    def _load_stored(self) -> None:
        """Read all refcounts into the census."""
        per_block = self.header.refcounts_per_block
        for index, offset in self.blocks():
            first = index * per_block
            count = min(per_block, self.census.clusters - first)
            raw = self._read(offset, self.header.cluster_size, "refcount block")
            if raw is not None:
                words = unpack_counts(raw, self.header.refcount_order)
                inside = max(0, count)
                self.census.store(first, words[:inside])
                self._counts_past_the_end(words[inside:], first + inside)

    def _counts_past_the_end(self, words: array[int], first: int) -> None:
        """Refcounts of clusters behind the end of the file are leaks."""
        if any(words):
            for cluster, value in enumerate(words, first):
                if value:
                    self.result.leaks += 1
                    self.census.say(f"Leaked cluster {cluster} refcount={value} reference=0")

    def blocks(self) -> Iterator[tuple[int, int]]:
        for index, entry in enumerate(self.volume.refcounts.table.words):
            offset = entry & BLOCK_OFFSET
            aligned = not offset & self.header.cluster_size - 1
            if offset and aligned and offset < self.census.file_size:
                yield index, offset

    def _walk_l1(self, offset: int, entries: int, *, active: bool) -> None:
        if not entries or not self.census.refer(offset, entries * 8):
            return
        raw = self._read(offset, entries * 8, "L1 table")
        for index, word in enumerate(words_from(raw or b"")):
            if word & OFFSET:
                self._walk_l2(index, word, active=active)

    def _walk_l2(self, index: int, word: int, *, active: bool) -> None:
        self.volume.tick()
        offset, size = word & OFFSET, self.header.cluster_size
        if offset & size - 1:
            self.census.wrong(
                f"ERROR l2_offset={offset:x}: Table is not cluster aligned; L1 entry corrupted"
            )
            return
        if not self.census.refer(offset, size):
            return
        count = self.census.stored[offset >> self.header.cluster_bits]
        if active and (count == 1) != bool(word & COPIED):
            self.census.miscopied.append(
                f"OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={word:x} refcount={count}"
            )
        raw = self._read(offset, size, "L2 table")
        if raw is not None:
            self.census.walk(words_from(raw), active=active)

    def _snapshots(self) -> None:
        try:
            snapshots, length = read_snapshots(self.volume.storage, self.header)
        except CorruptImage as error:
            self.census.wrong(f"ERROR snapshot table: {error.message}")
            return
        self.census.refer(self.header.snapshots_offset, length)
        for snapshot in snapshots:
            self._walk_l1(snapshot.l1_offset, snapshot.l1_size, active=False)

    def _crypto_header(self) -> None:
        raw = self.header.extension(CRYPTO)
        if self.header.crypt_method == CRYPT_LUKS and raw is not None and len(raw) == 16:
            self.census.refer(int.from_bytes(raw[:8]), int.from_bytes(raw[8:]))

    def _bitmaps(self) -> None:
        try:
            bitmaps = read_directory(self.volume.storage, self.header)
            self.census.refer(*directory_extent(self.header))
        except CorruptImage as error:
            self.census.wrong(f"ERROR bitmaps: {error.message}")
            return
        for bitmap in bitmaps:
            length = bitmap.table_size * 8
            if not self.census.refer(bitmap.table_offset, length):
                continue
            raw = self._read(bitmap.table_offset, length, "bitmap table") if length else b""
            for word in words_from(raw or b""):
                if word & OFFSET:
                    self.census.refer(word & OFFSET, self.header.cluster_size)

    def _refcount_structure(self) -> None:
        header, size = self.header, self.header.cluster_size
        self.census.refer(header.reftable_offset, header.reftable_clusters * size)
        for index, entry in enumerate(self.volume.refcounts.table.words):
            offset = entry & BLOCK_OFFSET
            if not offset:
                continue
            if offset & size - 1:
                self._broken_block(
                    f"ERROR refcount block {index} is not cluster aligned; "
                    "refcount table entry corrupted"
                )
            elif offset >= self.census.file_size:
                self._broken_block(f"ERROR refcount block {index} is outside image")
            else:
                self.census.refer(offset, size)
                count = self.census.counts[offset >> header.cluster_bits]
                if count != 1:
                    self._broken_block(f"ERROR refcount block {index} refcount={count}")

    def _broken_block(self, message: str) -> None:
        self.census.wrong(message)
        self.rebuild = True

    def _compare(self) -> None:
        result = self.result
        for cluster, have, want in self.census.differences():
            if have > want:
                result.leaks += 1
                self.census.say(f"Leaked cluster {cluster} refcount={have} reference={want}")
            else:
                # Whoever counts nothing may lack the block to count in.
                self.rebuild = self.rebuild or not have
                self.census.wrong(f"ERROR cluster {cluster} refcount={have} reference={want}")
