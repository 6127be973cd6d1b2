r"""A small FAT16 file system with a few files in its root directory, written in memory.

Layout (Microsoft "FAT: General Overview of On-Disk Format" 1.03), in sectors of 512 bytes:

=========  ==========================================================================
sector     content
=========  ==========================================================================
0          boot sector with the BIOS parameter block
1…         first allocation table: one 16-bit entry for each cluster
…          second table, the same
…          root directory: 512 entries of 32 bytes
…          clusters, numbered from 2
=========  ==========================================================================

A name outside the old 8.3 form is stored as a chain of entries of 13 UTF-16 characters before
the short one, last part first, tied to it by a checksum of the short name.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from wirt.errors import UsageError
from wirt.units import MIB

_SECTOR = 512
_PER_CLUSTER = 4
_ROOT_ENTRIES = 512
_TABLES = 2
_MEDIA = 0xF8
_FIRST_CLUSTER = 2
_END_OF_CHAIN = 0xFFFF
_MIN_CLUSTERS, _MAX_CLUSTERS = 4085, 65524
_VOLUME, _ARCHIVE, _LONG_NAME = 0x08, 0x20, 0x0F
# 1980-01-01, the first day FAT knows: equal content is equal bytes.
_DATE = 1 << 5 | 1
MAX_CONTENT = 64 * MIB


def build_fat(files: Mapping[str, bytes], *, label: str) -> bytes:
    """Return an image with ``files`` by name, labelled with at most 11 ASCII characters.

    Raises UsageError for names or amounts that do not fit.
    """
    if len(label) > 11 or not label.isascii():
        raise UsageError(f"{label!r} cannot be a FAT label")
    if sum(map(len, files.values())) > MAX_CONTENT:
        raise UsageError("more than 64 MiB do not fit into a seed image")
    cluster = _SECTOR * _PER_CLUSTER
    needed = sum(-(-len(content) // cluster) for content in files.values())
    clusters = max(needed, _MIN_CLUSTERS + 16)
    table, directory, data = [0xFF00 | _MEDIA, _END_OF_CHAIN], [_volume_entry(label)], []
    for index, (name, content) in enumerate(files.items()):
        first = len(table) if content else 0
        count = -(-len(content) // cluster)
        if count:
            table += [*range(first + 1, first + count), _END_OF_CHAIN]
        data.append(content.ljust(count * cluster, b"\0"))
        directory += _entries(name, index, first, len(content))
    if clusters > _MAX_CLUSTERS or len(directory) > _ROOT_ENTRIES:
        raise UsageError("too many files for a seed image")
    return _assemble(label, clusters, table, directory, b"".join(data))


def _assemble(
    label: str, clusters: int, table: list[int], directory: list[bytes], data: bytes
) -> bytes:
    table_sectors = -(-(clusters + _FIRST_CLUSTER) * 2 // _SECTOR)
    packed = struct.pack(f"<{len(table)}H", *table).ljust(table_sectors * _SECTOR, b"\0")
    root = b"".join(directory).ljust(_ROOT_ENTRIES * 32, b"\0")
    total = 1 + _TABLES * table_sectors + len(root) // _SECTOR + clusters * _PER_CLUSTER
    head = _boot_sector(label, total, table_sectors)
    return (head + packed * _TABLES + root + data).ljust(total * _SECTOR, b"\0")


def _boot_sector(label: str, total: int, table_sectors: int) -> bytes:
    """Jump, maker, BIOS parameter block, extended block with serial number and label."""
    block = struct.pack(
        "<HBHBHHBHHHII", _SECTOR, _PER_CLUSTER, 1, _TABLES, _ROOT_ENTRIES,
        total if total < 1 << 16 else 0, _MEDIA, table_sectors, 32, 2, 0,
        total if total >= 1 << 16 else 0,
    )  # fmt: skip
    extended = struct.pack("<BBBI11s8s", 0x80, 0, 0x29, 0x77697274, _label(label), b"FAT16   ")
    sector = b"\xeb\x3c\x90wirt    " + block + extended
    return sector.ljust(510, b"\0") + b"\x55\xaa"


def _label(label: str) -> bytes:
    return label.upper().encode("ascii").ljust(11)


def _volume_entry(label: str) -> bytes:
    return _entry(_label(label), _VOLUME, 0, 0)


def _entry(short: bytes, attributes: int, first: int, size: int) -> bytes:
    return struct.pack("<11sB8xHHHHI", short, attributes, 0, 0, _DATE, first, size)


def _entries(name: str, index: int, first: int, size: int) -> list[bytes]:
    """Return the long and the short entries of a file."""
    if not name or len(name) > 255 or set(name) & set('"*/:<>?\\|\0') or not name.isprintable():
        raise UsageError(f"{name[:40]!r} cannot be a name on a FAT file system")
    short = f"WIRT~{index:03}".encode("ascii").ljust(11)
    check = 0
    for byte in short:
        check = ((check >> 1 | check << 7) + byte) & 0xFF
    units = name.encode("utf-16-le")
    pieces = [units[start : start + 26] for start in range(0, len(units), 26)]
    long = [_long_entry(piece, place, check) for place, piece in enumerate(pieces, 1)]
    last = bytes([long[-1][0] | 0x40]) + long[-1][1:]
    return [last, *reversed(long[:-1]), _entry(short, _ARCHIVE, first, size)]


def _long_entry(piece: bytes, place: int, check: int) -> bytes:
    if len(piece) < 26:
        piece = (piece + b"\0\0").ljust(26, b"\xff")
    head = struct.pack("<B10sBBB", place, piece[:10], _LONG_NAME, 0, check)
    return head + piece[10:22] + b"\0\0" + piece[22:]
