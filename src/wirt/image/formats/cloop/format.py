"""What the registry knows of cloop."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Mapping

from wirt.errors import OutOfBounds, UsageError
from wirt.image.base import Format, Image, OpenOptions, Storage
from wirt.image.formats.cloop.image import CloopImage, CloopWriter, zero_block
from wirt.image.formats.cloop.index import HEADER, PREAMBLE, BlockIndex, is_cloop, read_index
from wirt.image.formats.mapped import SECTOR, refuse_unknown

_SCRIPT = PREAMBLE + b"modprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\nexit $?\n"
_BLOCK = 65536
_MOST_BLOCKS = 1 << 26
_PIECE = 4096


class CloopFormat(Format):
    name = "cloop"
    suffixes = (".cloop",)
    images = (CloopImage, CloopWriter)
    has_compression = True

    def probe(self, storage: Storage) -> bool:
        return is_cloop(storage)

    def open(self, storage: Storage, options: OpenOptions) -> Image:
        index = read_index(storage, options.budget)
        if options.writable and _is_new(storage, index):
            return CloopWriter(storage, index, options)
        return CloopImage(storage, index, options)

    def create(self, storage: Storage, size: int, options: Mapping[str, str]) -> None:
        """Options: ``block_size`` (64 KiB). The disk is made of whole blocks."""
        refuse_unknown(options, "block_size")
        block = _block_size(options.get("block_size", str(_BLOCK)))
        count = -(-size // block)
        if count > _MOST_BLOCKS:
            raise OutOfBounds(
                "a cloop disk cannot be as large as this", hint="choose larger blocks"
            )
        packed = zero_block(block)
        start = HEADER + 8 * (count + 1)
        offsets = array("Q", range(start, start + len(packed) * count + 1, len(packed)))
        head = _SCRIPT.ljust(128, b"\0") + struct.pack(">II", block, count)
        storage.pwrite(0, head + struct.pack(f">{count + 1}Q", *offsets))
        for number in range(0, count, _PIECE):
            piece = packed * min(_PIECE, count - number)
            storage.pwrite(offsets[number], piece)


def _block_size(text: str) -> int:
    factor = {"k": 1 << 10, "K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
    digits = text if factor == 1 else text[:-1]
    value = int(digits) * factor if digits.isdecimal() and len(digits) < 10 else 0
    if not value or value % SECTOR or value > 8 << 20:
        raise UsageError(f"block_size={text[:20]!r}", hint="a multiple of 512, up to 8M")
    return value


def _is_new(storage: Storage, index: BlockIndex) -> bool:
    """True of a version 2 disk that is nothing but blocks of zeros, as ``create`` makes it."""
    first, last = index.offsets[0], index.offsets[-1]
    if index.version != 2 or first != HEADER + 8 * (index.count + 1) or last != storage.size():
        return False
    packed = zero_block(index.block_size)
    if last - first != index.count * len(packed):
        return False
    return _all_zero(storage, first, last, packed)


def _all_zero(storage: Storage, start: int, end: int, packed: bytes) -> bool:
    piece = packed * _PIECE
    for at in range(start, end, len(piece)):
        length = min(len(piece), end - at)
        if storage.pread(at, length) != piece[:length]:
            return False
    return True


FORMAT = CloopFormat()
