"""Overlap checks: no write may touch metadata that it does not mean to write.

A corrupt image can claim that a free cluster, or a data cluster, is where a table lies.
QEMU's answer, kept here: before every write compare with the known metadata; refuse, and
mark the image corrupt (so that nothing writes to it until it is repaired).
"""

from __future__ import annotations

from wirt.errors import CorruptImage, OutOfBounds

HEADER = "image header"
ACTIVE_L1 = "active L1 table"
ACTIVE_L2 = "active L2 table"
REFTABLE = "refcount table"
REFBLOCK = "refcount block"
SNAPSHOT_TABLE = "snapshot table"
INACTIVE_L1 = "inactive L1 table"
BITMAP = "bitmap directory"
CRYPTO_HEADER = "LUKS header"

_MOST_CLUSTERS = 4 << 20


class Guard:
    """Knows the cluster numbers of the image's metadata."""

    def __init__(self, cluster_bits: int) -> None:
        self._bits = cluster_bits
        self._kinds: dict[int, str] = {0: HEADER}

    def add(self, kind: str, offset: int, length: int = 1) -> None:
        """Register ``length`` bytes at ``offset``. Raises CorruptImage on a collision."""
        if length <= 0:
            return
        first, last = offset >> self._bits, (offset + length - 1) >> self._bits
        if last - first + len(self._kinds) > _MOST_CLUSTERS:
            raise OutOfBounds("the image has too much metadata to be written safely")
        for cluster in range(first, last + 1):
            other = self._kinds.setdefault(cluster, kind)
            if other != kind:
                raise CorruptImage(f"{kind} overlaps with {other}", offset=cluster << self._bits)

    def clear(self) -> None:
        self._kinds = {0: HEADER}

    def drop(self, offset: int, length: int = 1) -> None:
        if length > 0:
            first, last = offset >> self._bits, (offset + length - 1) >> self._bits
            for cluster in range(first, last + 1):
                self._kinds.pop(cluster, None)

    def check(self, offset: int, length: int, kind: str | None = None) -> None:
        """Raise CorruptImage if a write there destroys metadata other than ``kind``."""
        first, last = offset >> self._bits, (offset + length - 1) >> self._bits
        kinds = self._kinds
        for cluster in range(first, last + 1):
            found = kinds.get(cluster)
            if found is not None and found != kind:
                raise CorruptImage(
                    f"refusing to overwrite the {found}", offset=cluster << self._bits
                )
