"""Disks with a table of tables, as qcow 1 and QED have: L1 names L2s, L2 names clusters."""

from __future__ import annotations

import struct

from wirt.errors import CorruptImage
from wirt.image.base import Budget, Storage
from wirt.image.formats.mapped import BlockImage, read_exactly, read_metadata

_CACHED_TABLES = 64


class TwoLevelImage(BlockImage):
    """The tables; what an entry means is the format's."""

    _order: str
    """``>`` or ``<``, as ``struct`` says it."""
    _l1: list[int]
    _l1_offset: int
    _l2_entries: int

    def _load_l1(self, storage: Storage, offset: int, entries: int, budget: Budget) -> None:
        raw = read_metadata(storage, offset, 8 * entries, "the L1 table", budget)
        self._l1_offset = offset
        self._l1 = list(struct.unpack(f"{self._order}{entries}Q", raw))
        self._l2: dict[int, list[int]] = {}
        self._dirty_tables: set[int] = set()
        self._next = -(-storage.size() // self.block_size) * self.block_size

    def _table(self, number: int) -> list[int]:
        table = self._l2.get(number)
        if table is None:
            if len(self._l2) >= _CACHED_TABLES and not self._dirty_tables:
                self._l2.clear()
            place, count = self._l1[number], self._l2_entries
            if place:
                raw = read_exactly(self.storage, place, 8 * count, "an L2 table")
                table = list(struct.unpack(f"{self._order}{count}Q", raw))
            else:
                table = [0] * count
            self._l2[number] = table
        return table

    def _entry(self, index: int) -> int:
        number, inside = divmod(index, self._l2_entries)
        if number >= len(self._l1):
            raise CorruptImage("the L1 table is too short for the disk")
        return self._table(number)[inside]

    def _set(self, index: int, value: int) -> None:
        number, inside = divmod(index, self._l2_entries)
        self._table(number)[inside] = value
        self._dirty_tables.add(number)

    def _store(self, index: int, content: bytes) -> None:
        self._set(index, self._append(content, align=self.block_size))

    def _publish(self, indexes: list[int]) -> None:
        new = []
        for number in sorted(self._dirty_tables):
            table = self._l2[number]
            raw = struct.pack(f"{self._order}{len(table)}Q", *table)
            if self._l1[number]:
                self.storage.pwrite(self._l1[number], raw)
                continue
            self._l1[number] = self._append(raw, align=self.block_size)
            new.append(number)
        self._dirty_tables.clear()
        if new:
            self.storage.flush()
        for number in new:
            entry = struct.pack(f"{self._order}Q", self._l1[number])
            self.storage.pwrite(self._l1_offset + 8 * number, entry)
