"""Where the blocks of a cloop lie and how they are packed, for every version."""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable

import msgspec

from wirt.errors import CorruptImage, NotThisFormat, OutOfBounds, UnsupportedImage
from wirt.image.base import Budget, Storage
from wirt.image.formats.cloop.unpacking import LZ4, LZO, PLAIN, XZ, ZLIB
from wirt.image.formats.mapped import SECTOR, read_exactly, read_metadata

PREAMBLE = b"#!/bin/sh\n#V2.0 Format\n"
HEADER = 136
_SHELL = b"#!/bin/sh\n"
_OLD_LOADER = b"cloop.o file=$0"
_FOOTER = struct.Struct(">QI8s")
_SIGNATURE_3 = b"\nCLOOP3\n"
_FLAGS_3 = {0: PLAIN, 2: ZLIB, 4: LZO, 8: XZ, 16: LZ4}
_MOST_BLOCK = 16 << 20
_OFFSET = (1 << 60) - 1


class BlockIndex(msgspec.Struct, frozen=True):
    version: int
    block_size: int
    size: int
    """Of the disk, in bytes."""
    offsets: array[int]
    """One more than there are blocks."""
    codec: Callable[[int], int]

    @property
    def count(self) -> int:
        return len(self.offsets) - 1

    def place(self, number: int) -> tuple[int, int]:
        """Return where a block lies: offset and length. Raises CorruptImage."""
        start, end = self.offsets[number] & _OFFSET, self.offsets[number + 1] & _OFFSET
        if end < start or end - start > 2 * self.block_size + 4096:
            raise CorruptImage(f"block {number} has a wrong length", offset=start)
        return start, end - start


def is_cloop(storage: Storage) -> bool:
    head = storage.pread(0, 128)
    if _version(head) in {1, 2, 4}:
        return True
    tail = storage.pread(max(0, storage.size() - HEADER), HEADER)
    return _version(tail) in {2, 4} or tail.endswith(_SIGNATURE_3)


def _version(header: bytes) -> int:
    if header.startswith(_SHELL + b"#V") and header[13:15] == b".0":
        return header[12] - ord("0")
    return 1 if header.startswith(_SHELL) and _OLD_LOADER in header[:128] else 0


def read_index(storage: Storage, budget: Budget) -> BlockIndex:
    """Raises NotThisFormat, CorruptImage, OutOfBounds."""
    size = storage.size()
    head = storage.pread(0, HEADER)
    version = _version(head)
    if version == 1 and len(head) == HEADER:
        return _version_1(storage, head, budget)
    if version in {2, 4} and len(head) == HEADER:
        return _with_header(storage, head, version, HEADER, budget)
    if version:
        raise UnsupportedImage(f"cloop version {version} is not known")
    tail = storage.pread(max(0, size - HEADER), HEADER)
    if tail.endswith(_SIGNATURE_3):
        return _version_3(storage, size - _FOOTER.size, budget)
    version = _version(tail)
    if version in {2, 4} and len(tail) == HEADER:
        (count,) = struct.unpack_from(">I", tail, 132)
        return _with_header(storage, tail, version, size - HEADER - 8 * (count + 1), budget)
    raise NotThisFormat("there is no cloop preamble")


def _block_size(value: int) -> int:
    if not value or value % SECTOR or value > _MOST_BLOCK:
        raise CorruptImage(f"blocks cannot be {value} bytes long")
    return value


def _words(storage: Storage, at: int, count: int, budget: Budget, kind: str = "Q") -> array[int]:
    """Return ``count`` big-endian numbers: ``Q`` of 8 bytes, ``I`` of 4."""
    words = array(kind)
    raw = read_metadata(storage, at, words.itemsize * count, "the offsets", budget)
    words.frombytes(raw)
    if sys.byteorder == "little":
        words.byteswap()
    return words


def _with_header(
    storage: Storage, header: bytes, version: int, at: int, budget: Budget
) -> BlockIndex:
    size, count = struct.unpack_from(">II", header, 128)
    offsets = _words(storage, at, count + 1, budget)
    codec = (lambda number: offsets[number] >> 60) if version == 4 else _always_zlib
    return BlockIndex(version, _block_size(size), count * size, offsets, codec)


def _always_zlib(_: int) -> int:
    return ZLIB


def _version_1(storage: Storage, header: bytes, budget: Budget) -> BlockIndex:
    """The first block begins behind the offsets: that tells their width and order."""
    size, count = struct.unpack_from(">II", header, 128)
    first = read_exactly(storage, HEADER, 8, "the offsets")
    wide = HEADER + 8 * (count + 1)
    if int.from_bytes(first[:4]) == HEADER + 4 * (count + 1):
        offsets = array("Q", _words(storage, HEADER, count + 1, budget, "I"))
    else:
        offsets = _words(storage, HEADER, count + 1, budget)
        if int.from_bytes(first, "little") == wide:
            offsets.byteswap()
        elif int.from_bytes(first) != wide:
            raise CorruptImage("the first block does not follow the offsets")
    return BlockIndex(1, _block_size(size), count * size, offsets, _always_zlib)


def _version_3(storage: Storage, footer: int, budget: Budget) -> BlockIndex:
    raw = read_exactly(storage, footer, _FOOTER.size, "the footer")
    at, version, _ = _FOOTER.unpack(raw)
    if version != 3:
        raise UnsupportedImage(f"cloop version {version} is not known")
    count, size, length = struct.unpack(">IIQ", read_exactly(storage, at, 16, "the index"))
    size = _block_size(size)
    if not (count - 1) * size < length <= count * size:
        raise CorruptImage(f"{count} blocks do not hold a disk of {length} bytes")
    offsets = _words(storage, at + 16, count + 1, budget)
    flags = _words(storage, at + 16 + 8 * (count + 1), count, budget, "I")
    if not set(flags) <= set(_FLAGS_3):
        raise CorruptImage("a block is packed in an unknown way")
    return BlockIndex(3, size, length, offsets, lambda number: _FLAGS_3[flags[number]])


def refuse_expansion(index: BlockIndex, stored: int, budget: Budget) -> None:
    if index.size > max(budget.expansion_floor, budget.expansion * stored):
        raise OutOfBounds("the image expands beyond the budget")
