r"""A FAT volume: how large its parts are, its boot sector and its tables.

Specification: Microsoft "FAT: General Overview of On-Disk Format" 1.03. Little-endian; the
parts, in sectors of 512 bytes:

=============  ========================================================================
part           content
=============  ========================================================================
reserved       the boot sector; FAT32 also has an information sector (1) and a copy (6)
two tables     an entry of 12, 16 or 32 bits for each cluster; two unused ones in front
root           FAT12 and FAT16 only: entries of 32 bytes, their number is fixed
clusters       numbered from 2; the root of FAT32 is among them
=============  ========================================================================

The number of clusters alone says which FAT it is: below 4085 it is FAT12, below 65525 FAT16.
"""

from __future__ import annotations

import array
import struct
import sys
from collections.abc import Iterable

import msgspec

from wirt.errors import UsageError

SECTOR = 512
ENTRY = 32
FIRST_CLUSTER = 2
TABLES = 2
_INFORMATION_SECTOR, _BACKUP_SECTOR = 1, 6
_LARGEST_CLUSTER = 64  # sectors: 32 KiB, which every driver reads
_FEWEST = {12: 1, 16: 4085, 32: 65525}
_MOST = {12: 4084, 16: 65524, 32: 0x0FFFFFF5}
_SERIAL = 0x77697274


class Volume(msgspec.Struct, frozen=True):
    """Where everything of a volume lies; all but ``bits`` and ``media`` are sectors or counts."""

    bits: int
    sectors: int
    cluster_sectors: int
    root_entries: int
    hidden: int = 0
    """Sectors of the disk in front of the volume."""
    media: int = 0xF8
    heads: int = 16
    track: int = 63

    @property
    def reserved(self) -> int:
        return 32 if self.bits == 32 else 1

    @property
    def root_sectors(self) -> int:
        return self.root_entries * ENTRY // SECTOR

    @property
    def table_sectors(self) -> int:
        """Enough for the clusters there would be without tables: a little more than needed."""
        clusters = (self.sectors - self.reserved - self.root_sectors) // self.cluster_sectors
        return -(-(clusters + FIRST_CLUSTER) * self.bits // (8 * SECTOR))

    @property
    def root_start(self) -> int:
        return self.reserved + TABLES * self.table_sectors

    @property
    def data_start(self) -> int:
        return self.root_start + self.root_sectors

    @property
    def clusters(self) -> int:
        return max(0, self.sectors - self.data_start) // self.cluster_sectors

    @property
    def cluster_bytes(self) -> int:
        return self.cluster_sectors * SECTOR

    @property
    def end_of_chain(self) -> int:
        return (1 << min(self.bits, 28)) - 1

    def cluster_offset(self, cluster: int) -> int:
        """Return where the cluster lies, in bytes from the beginning of the volume."""
        return (self.data_start + (cluster - FIRST_CLUSTER) * self.cluster_sectors) * SECTOR


def plan_volume(
    bits: int, sectors: int, *, root_entries: int = 512, hidden: int = 0, media: int = 0xF8
) -> Volume:
    """Return a volume of ``sectors`` with the smallest clusters that make it FAT``bits``.

    Raises UsageError if there are none.
    """
    smallest = 8 if bits == 32 and sectors >= 8 * _FEWEST[32] * 2 else 1
    size = smallest
    while size <= _LARGEST_CLUSTER:
        volume = Volume(bits, sectors, size, 0 if bits == 32 else root_entries, hidden, media)
        if _FEWEST[bits] <= volume.clusters <= _MOST[bits]:
            return volume
        size *= 2
    raise UsageError(f"a FAT{bits} volume cannot have {sectors * SECTOR >> 10} KiB")


def boot_sectors(volume: Volume, label: bytes) -> bytes:
    """Return the reserved sectors; ``label`` has 11 bytes."""
    head = _boot_sector(volume, label)
    if volume.bits != 32:
        return head
    sectors = bytearray(volume.reserved * SECTOR)
    for start in (0, _BACKUP_SECTOR):
        sectors[start * SECTOR : (start + 1) * SECTOR] = head
        place = (start + _INFORMATION_SECTOR) * SECTOR
        sectors[place : place + SECTOR] = _information_sector()
    return bytes(sectors)


def _boot_sector(volume: Volume, label: bytes) -> bytes:
    """Jump, maker, BIOS parameter block, extended block with serial number and label."""
    small = volume.sectors if volume.sectors < 1 << 16 and volume.bits != 32 else 0
    block = struct.pack(
        "<HBHBHHBHHHII", SECTOR, volume.cluster_sectors, volume.reserved, TABLES,
        volume.root_entries, small, volume.media,
        0 if volume.bits == 32 else volume.table_sectors, volume.track, volume.heads,
        volume.hidden, 0 if small else volume.sectors,
    )  # fmt: skip
    if volume.bits == 32:
        block += struct.pack(
            "<IHHIHH12x", volume.table_sectors, 0, 0, FIRST_CLUSTER, _INFORMATION_SECTOR,
            _BACKUP_SECTOR,
        )  # fmt: skip
    drive = 0 if volume.media == 0xF0 else 0x80
    kind = b"FAT%d   " % volume.bits
    extended = struct.pack("<BBBI11s8s", drive, 0, 0x29, _SERIAL, label, kind)
    jump = b"\xeb\x58\x90" if volume.bits == 32 else b"\xeb\x3c\x90"
    return (jump + b"wirt    " + block + extended).ljust(510, b"\0") + b"\x55\xaa"


def _information_sector() -> bytes:
    """Hints about free clusters: both unknown, so that no driver believes a stale number."""
    unknown = 0xFFFFFFFF
    head = b"RRaA".ljust(484, b"\0") + struct.pack("<4sII", b"rrAa", unknown, unknown)
    return head.ljust(508, b"\0") + b"\0\0\x55\xaa"


def pack_table(volume: Volume, chains: Iterable[tuple[int, int]]) -> bytes:
    """Return one table in which each (first cluster, count) is a chain of neighbours.

    The chains are in order and without gaps, from the first cluster on.
    """
    entries = array.array("I", [volume.end_of_chain & ~0xFF | volume.media, volume.end_of_chain])
    for first, count in chains:
        entries.extend(range(first + 1, first + count))
        entries.append(volume.end_of_chain)
    return _packed(volume.bits, entries).ljust(volume.table_sectors * SECTOR, b"\0")


def _packed(bits: int, entries: array.array[int]) -> bytes:
    if bits == 12:
        return _packed_12(entries)
    words = array.array("H" if bits == 16 else "I", entries)
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()


def _packed_12(entries: array.array[int]) -> bytes:
    """Two entries share three bytes."""
    out = bytearray()
    for index in range(0, len(entries), 2):
        second = entries[index + 1] if index + 1 < len(entries) else 0
        out += (entries[index] | second << 12).to_bytes(3, "little")
    return bytes(out)


def unpack_table(bits: int, data: bytes, count: int) -> array.array[int]:
    """Return the first ``count`` entries of a table."""
    if bits == 12:
        words = (int.from_bytes(data[i * 3 // 2 : i * 3 // 2 + 2], "little") for i in range(count))
        return array.array("I", (w >> 4 if i % 2 else w & 0xFFF for i, w in enumerate(words)))
    words_16_32 = array.array("H" if bits == 16 else "I", data[: count * bits // 8])
    if sys.byteorder == "big":
        words_16_32.byteswap()
    if bits == 16:
        return array.array("I", words_16_32)
    return array.array("I", (word & 0x0FFFFFFF for word in words_16_32))
