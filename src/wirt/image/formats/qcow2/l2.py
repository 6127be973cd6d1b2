"""L1 and L2 entries: where a guest cluster lies.

An L1 entry holds the offset of an L2 table and COPIED. An L2 entry is one word::

    63      COPIED: the refcount is exactly one, so the cluster may be written in place
    62      COMPRESSED: see ``compressed.py``
    9..55   host offset of the cluster, 0 when none is allocated
    0       ZERO (version 3): reads as zeros, whatever the host cluster holds

With extended L2 entries a second word follows: bits 0..31 say which of the 32 subclusters
are allocated, bits 32..63 which read as zeros; then bit 0 of the first word is unused.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

from wirt.image.formats.qcow2.words import words_to

COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1
OFFSET = 0x00FF_FFFF_FFFF_FE00
ALL_ALLOCATED = 0xFFFF_FFFF
ALL_ZERO = 0xFFFF_FFFF << 32

UNALLOCATED, ZERO_PLAIN, ZERO_ALLOCATED, NORMAL, PACKED = range(5)
WITH_HOST = frozenset((ZERO_ALLOCATED, NORMAL))


class Run(NamedTuple):
    """Guest bytes in one state. ``host`` is a file offset, or the entry of a PACKED cluster."""

    offset: int
    length: int
    kind: int
    host: int


class Table:
    """A cached metadata table: its words, and which of them the file does not have yet."""

    __slots__ = ("fresh", "high", "low", "offset", "words")

    def __init__(self, offset: int, words: array[int], *, fresh: bool) -> None:
        self.offset = offset
        self.words = words
        self.fresh = fresh
        """Nothing on disk refers to the table yet: it may be written at any time."""
        self.low, self.high = (0, len(words)) if fresh else (len(words), 0)

    @property
    def dirty(self) -> bool:
        return self.low < self.high

    def touch(self, low: int, high: int) -> None:
        self.low = min(self.low, low)
        self.high = max(self.high, high)

    def clean(self) -> None:
        self.low, self.high = len(self.words), 0

    def changed(self) -> tuple[int, bytes]:
        """Return (file offset, bytes) of the changed words, widened to whole sectors."""
        per_sector = 512 // self.words.itemsize
        low = self.low // per_sector * per_sector
        high = min(-(-self.high // per_sector) * per_sector, len(self.words))
        return self.offset + low * self.words.itemsize, words_to(self.words[low:high])
