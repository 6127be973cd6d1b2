"""Disks with a table of tables, as qcow 1 and QED have: L1 names L2s, L2 names clusters."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from wirt.errors import CorruptImage
from wirt.image.base import Budget, Extent, ExtentKind, Storage
from wirt.image.formats.mapped import read_exactly, read_metadata
from wirt.image.formats.table_check import Use
from wirt.image.formats.table_image import OverlayTable

_CACHED_TABLES = 64


class TwoLevelImage(OverlayTable):
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
        self._align = self.block_size
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

    def _hole_without_table(self, offset: int, limit: int) -> Extent | None:
        """Return the hole at ``offset`` where no L2 table is, as far as that would reach."""
        span = self._l2_entries * self.block_size
        number = offset // span
        if number >= len(self._l1) or self._l1[number] or number in self._l2:
            return None
        return Extent(offset, min(limit, span - offset % span), ExtentKind.HOLE)

    def _set(self, index: int, value: int) -> None:
        number, inside = divmod(index, self._l2_entries)
        self._table(number)[inside] = value
        self._dirty_tables.add(number)

    def _point(self, index: int, place: int) -> None:
        self._set(index, place)

    def _forget(self, index: int) -> None:
        self._set(index, 0)

    def _is_set(self, index: int) -> bool:
        return self._entry(index) != 0

    def _set_blocks(self) -> Iterator[int]:
        """A table that cannot be one, or that was seen before, names nothing more."""
        seen: set[int] = set()
        for number, place in enumerate(self._l1):
            cached = number in self._l2
            if not cached and (not place or place in seen or not self._table_fits(place)):
                continue
            seen.add(place)
            first = number * self._l2_entries
            last = min(first + self._l2_entries, self._block_count)
            yield from (index for index in range(first, last) if self._is_set(index))

    def _table_fits(self, place: int) -> bool:
        return place % self._grid == 0 and place + 8 * self._l2_entries <= self.storage.size()

    def _metadata(self) -> Iterator[Use]:
        """Tables are numbered below ``NO_ENTRY``, so that a repair knows whose entry it takes."""
        for number, place in enumerate(self._l1):
            if place:
                yield Use(place, 8 * self._l2_entries, f"L2 table {number}", -2 - number)

    def _forget_use(self, use: Use) -> None:
        super()._forget_use(use)
        if use.index < -1:
            number = -2 - use.index
            self._l1[number] = 0
            self.storage.pwrite(self._l1_offset + 8 * number, bytes(8))

    def _trim(self) -> None:
        super()._trim()
        self._next = -(-self._next // self.block_size) * self.block_size

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
