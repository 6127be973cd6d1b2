"""The journal (jbd2): which blocks it holds newer than the file system, big-endian.

===========  =================================================================================
block        content
===========  =================================================================================
superblock   block size (12), length (16), first block of the log (20), first transaction
             (24) and where it begins (28: 0 if all is in its place), features (40)
descriptor   1: a tag for each of the blocks that follow: where it belongs
commit       2: the transaction is whole
revoke       5: blocks that are not to be taken from this and earlier transactions
===========  =================================================================================

Each begins with a magic number, its kind and the number of its transaction; the log ends where
one does not. A guest that was stopped while it wrote leaves a transaction without a commit.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from wirt.errors import CorruptImage, UnsupportedImage
from wirt.image.ext4.blocks import Blocks, Moved, Run

_MAGIC = 0xC03B3998
_DESCRIPTOR, _COMMIT, _SUPERBLOCK, _REVOKE = 1, 2, 4, 5
_BITS64, _CHECKSUM_2, _CHECKSUM_3 = 2, 8, 16
_KNOWN = 1 | _BITS64 | _CHECKSUM_2 | _CHECKSUM_3
_ESCAPED, _SAME_UUID, _LAST = 1, 2, 8
_MOST = 1 << 20
"""Blocks of a journal that are looked at, and revocations: four times the largest that mke2fs
makes by itself."""


def replayed(blocks: Blocks, runs: list[Run]) -> dict[int, Moved]:
    """Return the blocks that the journal in ``runs`` has newer. Raises ImageError."""
    log = _Log(blocks, runs)
    transactions = list(log.transactions())
    revoked: dict[int, int] = {}
    for number, transaction in enumerate(transactions):
        revoked.update(dict.fromkeys(transaction.revoked, number))
    return {
        block: moved
        for number, transaction in enumerate(transactions)
        for block, moved in transaction.written
        if revoked.get(block, -1) < number
    }


class _Transaction(msgspec.Struct):
    written: list[tuple[int, Moved]] = msgspec.field(default_factory=list)
    revoked: list[int] = msgspec.field(default_factory=list)


class _Log:
    def __init__(self, blocks: Blocks, runs: list[Run]) -> None:
        self._blocks = blocks
        self._runs = runs
        head = blocks.read_raw(self._place(0), 1)
        magic, kind = struct.unpack_from(">II", head)
        size, self._length, self._first, self._sequence, self._start = struct.unpack_from(
            ">IIIII", head, 12
        )
        if magic != _MAGIC or kind != _SUPERBLOCK or size != blocks.size:
            raise CorruptImage("the journal's head is damaged")
        self._left, self._revocations = min(self._length, _MOST), _MOST
        (self._features,) = struct.unpack_from(">I", head, 40)
        if self._start and self._features & ~_KNOWN:
            raise UnsupportedImage(
                "its journal is of a kind that is not replayed here",
                hint="stop the machine in good order, and compare then",
            )

    def _place(self, number: int) -> int:
        """Return where block ``number`` of the journal lies."""
        for run in self._runs:
            if run.logical <= number < run.logical + run.blocks:
                return run.physical + number - run.logical
        raise CorruptImage("the journal has a hole")

    def _next(self, number: int) -> int:
        return number + 1 if number + 1 < self._length else self._first

    def transactions(self) -> Iterator[_Transaction]:
        """Yield those that were committed, oldest first."""
        if not self._start:
            return
        at, sequence, open_one = self._start, self._sequence, _Transaction()
        while True:
            self._spend(1)
            block = self._blocks.read_raw(self._place(at), 1)
            magic, kind, number = struct.unpack_from(">III", block)
            if magic != _MAGIC or number != sequence:
                return
            at = self._next(at)
            if kind == _DESCRIPTOR:
                for target, flags in self._tags(block):
                    self._spend(1)
                    place = Moved(self._place(at), bool(flags & _ESCAPED))
                    open_one.written.append((target, place))
                    at = self._next(at)
            elif kind == _REVOKE:
                revoked = self._revoked(block)
                self._spend_revoked(len(revoked))
                open_one.revoked += revoked
            elif kind == _COMMIT:
                yield open_one
                open_one, sequence = _Transaction(), (sequence + 1) & 0xFFFFFFFF
            else:
                return

    def _spend(self, blocks: int) -> None:
        """A log that goes round in circles, or is longer than any, is damaged."""
        self._left -= blocks
        if self._left < 0:
            raise CorruptImage("the journal has no end")

    def _spend_revoked(self, entries: int) -> None:
        self._revocations -= entries
        if self._revocations < 0:
            raise CorruptImage("the journal revokes more blocks than any")

    def _tags(self, block: bytes) -> Iterator[tuple[int, int]]:
        wide = bool(self._features & _BITS64)
        third = bool(self._features & _CHECKSUM_3)
        second = bool(self._features & _CHECKSUM_2)
        length = 16 if third else 8 + 4 * wide + 2 * second
        end = len(block) - 4 * (third or second)
        at = 12
        while at + length <= end:
            if third:
                low, flags, high = struct.unpack_from(">III", block, at)
            else:
                low, _, flags = struct.unpack_from(">IHH", block, at)
                (high,) = struct.unpack_from(">I", block, at + 8) if wide else (0,)
            yield (high << 32 | low if wide else low), flags
            at += length if flags & _SAME_UUID else length + 16
            if flags & _LAST:
                return

    def _revoked(self, block: bytes) -> list[int]:
        (used,) = struct.unpack_from(">I", block, 12)
        form = ">Q" if self._features & _BITS64 else ">I"
        entries = block[16 : min(used, len(block))]
        entries = entries[: len(entries) // struct.calcsize(form) * struct.calcsize(form)]
        return [number for (number,) in struct.iter_unpack(form, entries)]
