"""The partitions of a disk: GPT (UEFI specification 5.3), else MBR with logical partitions.

Little-endian. A GPT header in sector 1: signature, first sector of the entries (72), their
number and size (80, 84); an entry: type (0, all zero if unused), first and last sector (32, 40).
An MBR in sector 0: four entries of 16 bytes at 446: type (4), first sector (8), sectors (12);
an extended partition begins with such a table too: its first entry is relative to the table,
its second leads to the next table, relative to the extended partition.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from wirt.image.base import Image

_SECTOR = 512
_MOST = 128
_EXTENDED = {0x05, 0x0F, 0x85}
_PROTECTIVE = 0xEE


class Partition(NamedTuple):
    """A part of a disk, in bytes; ``number`` as Linux counts."""

    number: int
    start: int
    end: int


def partitions(image: Image) -> list[Partition]:
    """Return the partitions that lie inside the disk; none if it has no table."""
    head = image.pread(0, min(2 * _SECTOR, image.virtual_size))
    if head[510:512] != b"\x55\xaa":
        return []
    if head[_SECTOR : _SECTOR + 8] == b"EFI PART":
        found = _gpt(image, head)
    elif head[450] == _PROTECTIVE:
        return []
    else:
        found = _mbr(image, head)
    return sorted(one for one in found if 0 < one.start < one.end <= image.virtual_size)


def _gpt(image: Image, head: bytes) -> Iterator[Partition]:
    first, count, size = struct.unpack_from("<QII", head, _SECTOR + 72)
    if not 128 <= size <= 4096:
        return
    for index in range(min(count, _MOST)):
        place = first * _SECTOR + index * size
        if place + size > image.virtual_size:
            return
        entry = image.pread(place, size)
        start, last = struct.unpack_from("<QQ", entry, 32)
        if any(entry[:16]):
            yield Partition(index + 1, start * _SECTOR, (last + 1) * _SECTOR)


def _entries(table: bytes) -> list[tuple[int, int, int]]:
    """Return type, first sector and number of sectors of the four entries."""
    return [
        (table[at + 4], *struct.unpack_from("<II", table, at + 8)) for at in range(446, 510, 16)
    ]


def _mbr(image: Image, head: bytes) -> Iterator[Partition]:
    for index, (kind, start, count) in enumerate(_entries(head)):
        if kind in _EXTENDED:
            yield from _logical(image, start)
        elif kind and count:
            yield Partition(index + 1, start * _SECTOR, (start + count) * _SECTOR)


def _logical(image: Image, extended: int) -> Iterator[Partition]:
    at = extended
    for number in range(5, 5 + _MOST):
        if (at + 1) * _SECTOR > image.virtual_size:
            return
        table = image.pread(at * _SECTOR, _SECTOR)
        if table[510:] != b"\x55\xaa":
            return
        (_, start, count), (_, following, _), *_ = _entries(table)
        if count:
            yield Partition(number, (at + start) * _SECTOR, (at + start + count) * _SECTOR)
        if not following:
            return
        at = extended + following
