"""An open cloop, and one that is being written."""

from __future__ import annotations

import struct
import zlib
from array import array

from wirt.errors import CorruptImage, ImageIoError, UnsupportedImage
from wirt.image.base import (
    CompressedWriter,
    Extent,
    ExtentKind,
    ImageInfo,
    OpenOptions,
    Storage,
    WritableImage,
)
from wirt.image.compressors import compressor
from wirt.image.formats.cloop.index import HEADER, BlockIndex, refuse_expansion
from wirt.image.formats.cloop.unpacking import LZO, PLAIN, unpack
from wirt.image.formats.mapped import SECTOR, MappedImage, read_exactly, stored_size


class CloopImage(MappedImage):
    format_name = "cloop"

    def __init__(self, storage: Storage, index: BlockIndex, options: OpenOptions) -> None:
        self.storage = storage
        self.index = index
        self.block_size = index.block_size
        self.virtual_size = -(-index.size // SECTOR) * SECTOR
        refuse_expansion(index, storage.size(), options.budget)
        self._last: tuple[int, bytes] = (-1, b"")

    def _run(self, offset: int, limit: int) -> Extent:
        number, inside = divmod(offset, self.block_size)
        length = min(limit, self.block_size - inside)
        codec = self.index.codec(number)
        if codec > LZO:
            raise CorruptImage(f"block {number} is packed in an unknown way", offset=offset)
        if codec == PLAIN:
            place, stored = self.index.place(number)
            if stored == self.block_size and place + stored <= self.storage.size():
                at = place + inside
                data, storage = ExtentKind.DATA, self.storage
                return Extent(offset, length, data, storage=storage, storage_offset=at)
        return Extent(offset, length, ExtentKind.DATA, compressed=True)

    def _read_packed(self, offset: int, length: int) -> bytes:
        parts = []
        while length:
            number, inside = divmod(offset, self.block_size)
            part = self._block(number)[inside : inside + length]
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def _block(self, number: int) -> bytes:
        last, content = self._last
        if last == number:
            return content
        place, stored = self.index.place(number)
        packed = read_exactly(self.storage, place, stored, f"block {number}")
        content = unpack(self.index.codec(number), packed, self.block_size)
        if len(content) < min(self.block_size, self.index.size - number * self.block_size):
            raise CorruptImage(f"block {number} holds only {len(content)} bytes", offset=place)
        content = content.ljust(self.block_size, b"\0")
        self._last = (number, content)
        return content

    def info(self) -> ImageInfo:
        return ImageInfo(
            "cloop",
            self.virtual_size,
            stored_size(self.storage),
            self.block_size,
            specific={"version": self.index.version},
        )


def zero_block(size: int) -> bytes:
    """Return a block of zeros as ``create`` packs it."""
    return zlib.compress(bytes(size), 9)


class CloopWriter(CloopImage, CompressedWriter, WritableImage):
    """A new disk of zeros that is written once, from its start to its end.

    Blocks are packed as they fill; the offsets are written when the image is closed.
    """

    compression = "zlib"

    def __init__(self, storage: Storage, index: BlockIndex, options: OpenOptions) -> None:
        super().__init__(storage, index, options)
        self.compression_unit = index.block_size
        self._compress = compressor("zlib")
        self._zeros = zero_block(index.block_size)
        self._block_now = bytearray(index.block_size)
        self._place = HEADER + 8 * (index.count + 1)
        self._offsets = array("Q")
        self._closed = False

    @property
    def _number(self) -> int:
        """Of the block that is being filled; those before it are packed."""
        return len(self._offsets)

    def _run(self, offset: int, limit: int) -> Extent:
        number, inside = divmod(offset, self.block_size)
        length = min(limit, self.block_size - inside)
        if number > self._number:
            return Extent(offset, length, ExtentKind.ZERO)
        return Extent(offset, length, ExtentKind.DATA, compressed=True)

    def _block(self, number: int) -> bytes:
        if number == self._number:
            return bytes(self._block_now)
        end = self._offsets[number + 1] if number + 1 < self._number else self._place
        start = self._offsets[number]
        packed = read_exactly(self.storage, start, end - start, f"block {number}")
        return unpack(0, packed, self.block_size)

    def _append(self, packed: bytes) -> None:
        self.storage.pwrite(self._place, packed)
        self._offsets.append(self._place)
        self._place += len(packed)
        self._block_now[:] = bytes(self.block_size)

    def _finish_block(self) -> None:
        empty = not any(self._block_now)
        self._append(self._zeros if empty else self._compress(bytes(self._block_now)))

    def _advance(self, number: int) -> None:
        if number < self._number:
            raise UnsupportedImage(
                "a cloop is written once, from its start to its end",
                offset=number * self.block_size,
                hint="convert the changed disk again: wirt img convert",
            )
        while self._number < number:
            self._finish_block()

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        self._check(offset, len(view))
        while view:
            number, inside = divmod(offset, self.block_size)
            self._advance(number)
            part = view[: self.block_size - inside]
            self._block_now[inside : inside + len(part)] = part
            view = view[len(part) :]
            offset += len(part)

    def write_compressed(
        self, offset: int, packed: bytes | None, plain: bytes | memoryview
    ) -> None:
        self._check(offset, len(plain))
        self._advance(offset // self.block_size)
        if packed is None:
            self.pwrite(offset, plain)
        else:
            self._append(packed)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self._check(offset, length)
        end = offset + length
        while offset < end:
            number, inside = divmod(offset, self.block_size)
            step = min(end - offset, self.block_size - inside)
            if number <= self._number:
                self.pwrite(offset, bytes(step))
            offset += step

    def discard(self, offset: int, length: int) -> None:
        self.write_zeroes(offset, length)

    def flush(self) -> None:
        self.storage.flush()

    def close(self) -> None:
        try:
            if not self._closed and self._number + any(self._block_now):
                self._complete()
        finally:
            self._closed = True
            super().close()

    def _complete(self) -> None:
        while self._number < self.index.count:
            self._finish_block()
        self._offsets.append(self._place)
        if self._place > 1 << 60:
            raise ImageIoError("the file cannot be as large as this")
        table = struct.pack(f">{len(self._offsets)}Q", *self._offsets)
        self.storage.pwrite(HEADER, table)
        self.storage.truncate(self._place)
        self.storage.flush()
