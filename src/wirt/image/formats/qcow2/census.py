"""Counts the references to every host cluster, by walking all tables.

Small images are counted in plain Python; ``vector_census.py`` takes whole L2 tables at once
where numpy pays off, and hands back those that hold anything unusual.
"""

from __future__ import annotations

from array import array
from collections.abc import MutableSequence

from wirt.image.base import CheckResult
from wirt.image.formats.qcow2.compressed import packed_extent
from wirt.image.formats.qcow2.header import Header
from wirt.image.formats.qcow2.l2 import ALL_ALLOCATED, COMPRESSED, COPIED, OFFSET, ZERO

_MOST_MESSAGES = 10_000


class Census:
    """``counts[i]`` is how often cluster i is referred to; ``stored[i]`` what the image says."""

    def __init__(self, header: Header, file_size: int, result: CheckResult) -> None:
        self.header = header
        self.result = result
        self.file_size = file_size
        self.clusters = ((file_size + header.cluster_size - 1) >> header.cluster_bits) + 1
        self.counts: MutableSequence[int] = self.new_counts()
        self.stored: MutableSequence[int] = self.new_counts()
        self._next_contiguous = 0
        self.miscopied: list[str] = []
        """What is said of COPIED flags that contradict the refcounts, after all else."""

    def new_counts(self) -> MutableSequence[int]:
        return array("Q", bytes(8 * self.clusters))

    def store(self, first: int, words: array[int]) -> None:
        """Take the stored refcounts of the clusters from ``first`` on."""
        self.stored[first : first + len(words)] = array("Q", words)

    def say(self, message: str) -> None:
        if len(self.result.messages) < _MOST_MESSAGES:
            self.result.messages.append(message)

    def wrong(self, message: str) -> None:
        self.result.corruptions += 1
        self.say(message)

    def refer(self, offset: int, length: int) -> bool:
        """Count a reference to the clusters of a byte range; False if it lies past the end."""
        if length <= 0:
            return True
        bits = self.header.cluster_bits
        if offset + length - self.file_size >= self.header.cluster_size:
            self.wrong(
                "ERROR: counting reference for region exceeding the end of the file by one "
                f"cluster or more: offset {offset:#x} size {length:#x}"
            )
            return False
        for cluster in range(offset >> bits, ((offset + length - 1) >> bits) + 1):
            self.counts[cluster] += 1
        return True

    def walk(self, words: array[int], *, active: bool) -> None:
        """Count what an L2 table refers to; the active ones also give the statistics."""
        stride = 2 if self.header.extended_l2 else 1
        self._next_contiguous = 0
        for slot in range(0, len(words), stride):
            entry = words[slot]
            bitmap = words[slot + 1] if stride == 2 else 0
            if entry or bitmap:
                self._entry(entry, bitmap, active=active)

    def _entry(self, entry: int, bitmap: int, *, active: bool) -> None:
        if entry & COMPRESSED:
            self._packed(entry, bitmap, active=active)
        elif entry & OFFSET or (self.header.has_data_file and entry & COPIED):
            self._plain(entry, bitmap, active=active)
        elif bitmap & ALL_ALLOCATED:
            self.wrong("ERROR: Unallocated cluster has non-zero subcluster allocation map")

    def _packed(self, entry: int, bitmap: int, *, active: bool) -> None:
        offset, length = packed_extent(entry, self.header.cluster_bits)
        if entry & COPIED:
            self.wrong(
                f"ERROR: coffset={offset:#x}: copied flag must never be set for compressed clusters"
            )
        if self.header.has_data_file:
            self.wrong(f"ERROR compressed cluster with data file, entry={entry:#x}")
            return
        if bitmap:
            self.wrong("ERROR compressed cluster with non-zero subcluster allocation bitmap")
            return
        self.refer(offset, length)
        if active:
            self.result.allocated_clusters += 1
            self.result.compressed_clusters += 1
            self.result.fragmented_clusters += 1

    def _plain(self, entry: int, bitmap: int, *, active: bool) -> None:
        host, header = entry & OFFSET, self.header
        if bitmap >> 32 & bitmap & ALL_ALLOCATED:
            self.wrong(
                f"ERROR offset={host:x}: Allocated cluster with corrupted subcluster "
                "allocation bitmap"
            )
            return
        if host & header.cluster_size - 1:
            self.wrong(
                f"ERROR offset={host:x}: Cluster is not properly aligned; L2 entry corrupted."
            )
            return
        if header.version < 3 and entry & ZERO:
            self.wrong(f"ERROR offset={host:x}: Zero cluster in a version 2 image")
            return
        if active:
            self.result.allocated_clusters += 1
            if self._next_contiguous not in {0, host}:
                self.result.fragmented_clusters += 1
            self._next_contiguous = host + header.cluster_size
        if header.has_data_file:
            return
        self.refer(host, header.cluster_size)
        if active:
            self.check_copied(entry, host)

    def check_copied(self, entry: int, host: int) -> None:
        """COPIED must say exactly whether the stored refcount is one."""
        cluster = host >> self.header.cluster_bits
        count = self.stored[cluster] if cluster < self.clusters else 0
        if (count == 1) != bool(entry & COPIED):
            message = f"OFLAG_COPIED data cluster: l2_entry={entry:x} refcount={count}"
            self.miscopied.append(message)

    def differences(self) -> list[tuple[int, int, int]]:
        """Return (cluster, stored, counted) wherever the two differ."""
        pairs = zip(self.stored, self.counts, strict=True)
        return [(i, have, want) for i, (have, want) in enumerate(pairs) if have != want]

    def highest(self) -> int:
        """Return the number of the last used cluster."""
        last = self.clusters - 1
        while last >= 0 and not self.stored[last] and not self.counts[last]:
            last -= 1
        return last
