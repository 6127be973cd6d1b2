"""The census of large images, an L2 table at a time, with numpy."""

from __future__ import annotations

from array import array
from collections.abc import MutableSequence
from typing import cast

import numpy as np

from wirt.image.base import CheckResult
from wirt.image.formats.qcow2.census import Census
from wirt.image.formats.qcow2.header import Header
from wirt.image.formats.qcow2.l2 import COMPRESSED, COPIED, OFFSET, ZERO

_PIECE = 1 << 16
_COPIED = np.uint64(COPIED)
_OFFSET = np.uint64(OFFSET)
_ODD = np.uint64(COMPRESSED | ZERO)


class VectorCensus(Census):
    def __init__(self, header: Header, file_size: int, result: CheckResult) -> None:
        super().__init__(header, file_size, result)
        self._counts = cast("np.ndarray", self.counts)
        self._stored = cast("np.ndarray", self.stored)

    def new_counts(self) -> MutableSequence[int]:
        return cast("MutableSequence[int]", np.zeros(self.clusters, dtype=np.uint32))

    def store(self, first: int, words: array[int]) -> None:
        if words:
            self._stored[first : first + len(words)] = np.frombuffer(words, dtype=words.typecode)

    def walk(self, words: array[int], *, active: bool) -> None:
        entries = np.frombuffer(words, dtype=np.uint64)
        if (
            self.header.extended_l2
            or self.header.has_data_file
            or (entries.any() and not self._walk_plain(entries, active=active))
        ):
            super().walk(words, active=active)

    def _walk_plain(self, entries: np.ndarray, *, active: bool) -> bool:
        """Count a table of ordinary clusters; False if it holds anything else."""
        if bool((entries & _ODD).any()):
            return False
        if not entries.all():
            entries = entries[entries != 0]
        hosts = entries & _OFFSET
        size = self.header.cluster_size
        numbers = hosts >> np.uint64(self.header.cluster_bits)
        if int(numbers.max()) >= self.clusters - 1 or not hosts.all():
            return False
        row = bool((hosts[1:] - hosts[:-1] == np.uint64(size)).all())
        if row:
            if int(hosts[0]) & size - 1:
                return False
            first = int(numbers[0])
            where = slice(first, first + len(numbers))
            stored = self._stored[where]
        else:
            if bool((hosts & np.uint64(size - 1)).any()):
                return False
            stored = self._stored[numbers]
        if active and not bool(((stored == 1) == (entries >= _COPIED)).all()):
            return False
        if row:
            self._counts[where] += 1
        else:
            np.add.at(self._counts, numbers, 1)
        if active:
            self._statistics(hosts, row=row)
        return True

    def _statistics(self, hosts: np.ndarray, *, row: bool) -> None:
        result, size = self.result, self.header.cluster_size
        result.allocated_clusters += len(hosts)
        if not row:
            jumps = hosts[1:] - hosts[:-1] != np.uint64(size)
            result.fragmented_clusters += int(jumps.sum())

    def differences(self) -> list[tuple[int, int, int]]:
        where = np.flatnonzero(self._stored != self._counts).tolist()
        return [(i, int(self._stored[i]), int(self._counts[i])) for i in where]

    def highest(self) -> int:
        for end in range(self.clusters, 0, -_PIECE):
            start = max(0, end - _PIECE)
            used = np.flatnonzero(self._stored[start:end] | self._counts[start:end])
            if len(used):
                return start + int(used[-1])
        return -1
