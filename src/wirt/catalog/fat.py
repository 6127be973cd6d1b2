"""A small FAT16 file system with a few files in its root directory, written in memory."""

from __future__ import annotations

from collections.abc import Mapping

from wirt.errors import UsageError
from wirt.image.fat.directory import (
    ARCHIVE,
    VOLUME,
    ShortNames,
    pack_entry,
    pack_long_name,
    volume_label,
)
from wirt.image.fat.volume import ENTRY, FIRST_CLUSTER, TABLES, Volume, boot_sectors, pack_table
from wirt.units import MIB

_PER_CLUSTER = 4
_ROOT_ENTRIES = 512
_FEWEST_CLUSTERS = 4085 + 16
_SECTOR = 512
MAX_CONTENT = 64 * MIB


def build_fat(files: Mapping[str, bytes], *, label: str) -> bytes:
    """Return an image with ``files`` by name, labelled with at most 11 ASCII characters.

    Equal content is equal bytes. Raises UsageError for names or amounts that do not fit.
    """
    mark = volume_label(label)
    if sum(map(len, files.values())) > MAX_CONTENT:
        raise UsageError("more than 64 MiB do not fit into a seed image")
    size = _PER_CLUSTER * _SECTOR
    counts = [-(-len(content) // size) for content in files.values()]
    volume = _volume(max(sum(counts), _FEWEST_CLUSTERS))
    names = ShortNames()
    directory, data, chains = bytearray(pack_entry(mark, VOLUME, 0, 0)), bytearray(), []
    free = FIRST_CLUSTER
    for (name, content), count in zip(files.items(), counts, strict=True):
        short, needs_long = names.add(name)
        directory += pack_long_name(name, short) if needs_long else b""
        directory += pack_entry(short, ARCHIVE, free if count else 0, len(content))
        data += content.ljust(count * size, b"\0")
        if count:
            chains.append((free, count))
            free += count
    if len(directory) > _ROOT_ENTRIES * ENTRY:
        raise UsageError("too many files for a seed image")
    head = boot_sectors(volume, mark) + pack_table(volume, chains) * TABLES
    root = bytes(directory).ljust(_ROOT_ENTRIES * ENTRY, b"\0")
    return (head + root + data).ljust(volume.sectors * _SECTOR, b"\0")


def _volume(clusters: int) -> Volume:
    """Return a volume that has at least so many clusters."""
    tables = TABLES * -(-(clusters + 256) * 2 // _SECTOR)
    root = _ROOT_ENTRIES * ENTRY // _SECTOR
    return Volume(16, 1 + tables + root + clusters * _PER_CLUSTER, _PER_CLUSTER, _ROOT_ENTRIES)
