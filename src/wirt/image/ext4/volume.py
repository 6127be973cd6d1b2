"""A file system: its superblock, inodes and directories.

The superblock lies at byte 1024; behind it a descriptor for each group of blocks, which says
where the group's inodes lie. A directory is a file of entries: inode, length of the entry and
of the name, kind, name. The blocks of an index look like an entry of nothing.
"""

from __future__ import annotations

import stat
import struct
import time
from collections.abc import Iterator
from itertools import islice

import msgspec

from wirt.errors import CorruptImage, OutOfBounds, UnsupportedImage
from wirt.image.base import Image
from wirt.image.ext4.blocks import Blocks, Run, extent_runs, pointer_runs
from wirt.image.ext4.journal import replayed

ROOT = 2
SECONDS = 300.0
"""What reading one file system may take."""

_AT = 1024
_HAS_JOURNAL = 0x4
_KINDS, _RECOVER, _EXTENTS, _BITS64 = 0x2, 0x4, 0x40, 0x80
_READABLE = _KINDS | _RECOVER | _EXTENTS | _BITS64 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000
"""Beside them: multi-mount protection, flexible groups, attributes in inodes, checksum seed and
large directories, which change nothing here."""
_BY_EXTENTS = 0x80000
_MOST_RUNS = 1 << 20


class Inode(msgspec.Struct, frozen=True):
    """A file, directory, link or device. ``raw``: all that is stored of it."""

    number: int
    raw: bytes

    @property
    def mode(self) -> int:
        return int.from_bytes(self.raw[0:2], "little")

    @property
    def owner(self) -> tuple[int, int]:
        """Number of user and group."""
        return self._joined(0x2, 2, 0x78, 2), self._joined(0x18, 2, 0x7A, 2)

    @property
    def size(self) -> int:
        return self._joined(0x4, 4, 0x6C, 4)

    def _joined(self, low: int, low_bytes: int, high: int, high_bytes: int) -> int:
        """Return a number that is stored in two places."""
        parts = self.raw[low : low + low_bytes] + self.raw[high : high + high_bytes]
        return int.from_bytes(parts, "little")

    @property
    def flags(self) -> int:
        return int.from_bytes(self.raw[0x20:0x24], "little")

    @property
    def map(self) -> bytes:
        """The root of its map; a short link's target, or a device's numbers."""
        return self.raw[0x28:0x64]

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def has_blocks(self) -> bool:
        """False for what keeps all it has in the inode."""
        if stat.S_ISLNK(self.mode):
            return self.size >= len(self.map)
        return stat.S_ISREG(self.mode) or stat.S_ISDIR(self.mode)

    @property
    def attributes(self) -> tuple[object, ...]:
        """Kind and rights, owner, and the extended attributes that are kept in the inode."""
        extra = int.from_bytes(self.raw[0x80:0x82], "little") if len(self.raw) > 128 else 0
        return self.mode, self.owner, self.raw[128 + extra :] if extra else b""

    @property
    def attribute_block(self) -> int:
        """Where more extended attributes lie; 0 for none."""
        return self._joined(0x68, 4, 0x76, 2)


class Volume:
    """An open file system. Raises UnsupportedImage where there is none, and ImageError."""

    def __init__(self, image: Image) -> None:
        head = image.pread(_AT, 1024) if image.virtual_size >= 2 * _AT else bytes(1024)
        if head[56:58] != b"\x53\xef":
            raise UnsupportedImage("there is no ext4 file system")
        shift = int.from_bytes(head[24:28], "little")
        if shift > 6:
            raise CorruptImage("the size of its blocks is impossible")
        self.blocks = Blocks(image, 1024 << shift, time.monotonic() + SECONDS)
        self._parse(head)
        if self._compatible & _HAS_JOURNAL and self._features & _RECOVER:
            if not self._journal_inode:
                raise UnsupportedImage("its journal lies on another disk")
            runs = self.runs(self.inode(self._journal_inode))
            self.blocks = Blocks(image, self.blocks.size, self.blocks.deadline,
                                 replayed(self.blocks, runs))  # fmt: skip
            block, offset = divmod(_AT, self.blocks.size)
            self._parse(self.blocks.read(block)[offset : offset + 1024])

    def _parse(self, head: bytes) -> None:
        self._inodes, self._first = struct.unpack_from("<I16xI", head)
        self._group_inodes = int.from_bytes(head[40:44], "little")
        revision = int.from_bytes(head[76:80], "little")
        self._inode_size = int.from_bytes(head[88:90], "little") if revision else 128
        self._compatible, self._features = struct.unpack_from("<II", head, 92)
        self._journal_inode = int.from_bytes(head[224:228], "little")
        wide = self._features & _BITS64
        self._descriptor_size = int.from_bytes(head[254:256], "little") if wide else 32
        self._check()

    def _check(self) -> None:
        size = self.blocks.size
        if self._features & ~_READABLE:
            raise UnsupportedImage("it has features that are not read here (encryption, …)")
        sizes = (self._inode_size, self._descriptor_size)
        if any(one & (one - 1) or not one <= size for one in sizes) or not self._group_inodes:
            raise CorruptImage("its superblock is damaged")
        if self._inode_size < 128 or self._descriptor_size < 32 + 32 * bool(
            self._features & _BITS64
        ):
            raise CorruptImage("its superblock is damaged")

    def place_of(self, number: int) -> tuple[int, int]:
        """Return block and offset of an inode. Raises CorruptImage."""
        if not 1 <= number <= self._inodes:
            raise CorruptImage(f"there is no inode {number}")
        group, index = divmod(number - 1, self._group_inodes)
        per_block = self.blocks.size // self._descriptor_size
        block = self.blocks.read(self._first + 1 + group // per_block)
        at = group % per_block * self._descriptor_size
        (table,) = struct.unpack_from("<I", block, at + 8)
        if self._features & _BITS64:
            table |= struct.unpack_from("<I", block, at + 40)[0] << 32
        further, offset = divmod(index * self._inode_size, self.blocks.size)
        return table + further, offset

    def inode(self, number: int) -> Inode:
        """Return an inode. Raises CorruptImage."""
        block, offset = self.place_of(number)
        return Inode(number, self.blocks.read(block)[offset : offset + self._inode_size])

    def runs(self, inode: Inode) -> list[Run]:
        """Return where the blocks of a file lie, in order. Raises CorruptImage."""
        if not inode.has_blocks:
            return []
        count = -(-inode.size // self.blocks.size)
        if inode.flags & _BY_EXTENTS:
            found = extent_runs(self.blocks, inode.map)
        else:
            found = pointer_runs(self.blocks, inode.map, count)
        runs = list(islice((run for run in found if run.logical < count), _MOST_RUNS + 1))
        if len(runs) > _MOST_RUNS:
            raise OutOfBounds("a file lies in more pieces than are looked at")
        return runs

    def entries(self, inode: Inode) -> Iterator[tuple[bytes, int]]:
        """Yield name and inode of what is in a directory. Raises CorruptImage."""
        for run in self.runs(inode):
            for block in range(run.physical, run.physical + run.blocks):
                yield from _entries(self.blocks.read(block))


def _entries(block: bytes) -> Iterator[tuple[bytes, int]]:
    at = 0
    while at + 8 <= len(block):
        number, length, name_length = struct.unpack_from("<IHB", block, at)
        if length in {0, 0xFFFF} and len(block) > 0xFFFC:
            length = len(block) - at
        if length < 8 or length % 4 or at + length > len(block) or name_length > length - 8:
            raise CorruptImage("a directory is damaged")
        name = block[at + 8 : at + 8 + name_length]
        if number and name not in {b".", b".."}:
            yield name, number
        at += length
