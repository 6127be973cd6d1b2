"""streamOptimized: written once, front to back, as ESXi and OVF take it (version 3).

::

    header (its directory: all ones) | descriptor | grains, each with its marker, and behind
    those of a grain table the table | grain directory | footer (a header) | end of stream
    marker   u64 value, u32 size, u32 type: 0 end, 1 grain table, 2 directory, 3 footer; of a
             grain the value is its sector, the size that of the zlib stream that follows
"""

from __future__ import annotations

import struct

from msgspec.structs import replace

from wirt.errors import UnsupportedImage
from wirt.image.base import CompressedWriter, Extent, ExtentKind, ImageInfo, Storage, WritableImage
from wirt.image.compressors import compressor
from wirt.image.formats.mapped import SECTOR, MappedImage, stored_size
from wirt.image.formats.vmdk.sparse import (
    KDMV,
    SparseHeader,
    inflate_grain,
    is_unfinished,
)

_TABLE, _DIRECTORY, _FOOTER = 1, 2, 3


def is_new_stream(storage: Storage) -> bool:
    """Return whether the file is a stream that was made and not written yet."""
    head = storage.pread(0, SECTOR)
    return head[:4] == KDMV and is_unfinished(storage, SparseHeader.parse(head))


def _marker(value: int, kind: int) -> bytes:
    return struct.pack("<QII", value, 0, kind).ljust(SECTOR, b"\0")


class StreamVmdkImage(MappedImage, CompressedWriter, WritableImage):
    """A new stream. ``flush`` completes the file as it is by then; more may still follow."""

    format_name = "vmdk"
    compression = "zlib"
    only_compressed = True

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.header = SparseHeader.parse(storage.pread(0, SECTOR))
        self.header.check()
        self.virtual_size = self.header.capacity * SECTOR
        self.compression_unit = self.header.grain * SECTOR
        self._compress = compressor("zlib")
        self._next = storage.size()
        self._grains: dict[int, tuple[int, int]] = {}
        """Place and length of each stored grain."""
        self._tables: dict[int, int] = {}
        """Sector of each complete grain table."""
        self._open_table = 0
        self._changed = True

    # Reading

    def _run(self, offset: int, limit: int) -> Extent:
        index, inside = divmod(offset, self.compression_unit)
        length = min(limit, self.compression_unit - inside)
        kind = ExtentKind.DATA if index in self._grains else ExtentKind.HOLE
        return Extent(offset, length, kind, compressed=kind is ExtentKind.DATA)

    def _read_packed(self, offset: int, length: int) -> bytes:
        parts, unit = [], self.compression_unit
        while length:
            index, inside = divmod(offset, unit)
            grain = inflate_grain(self.storage.pread(*self._grains[index]), unit, unit)
            parts.append(grain[inside : inside + length])
            offset, length = offset + len(parts[-1]), length - len(parts[-1])
        return b"".join(parts)

    def info(self) -> ImageInfo:
        kind = {"create-type": "streamOptimized"}
        size = stored_size(self.storage)
        return ImageInfo("vmdk", self.virtual_size, size, self.compression_unit, specific=kind)

    # Writing

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        self._check(offset, len(view))
        unit = self.compression_unit
        if offset % unit or (len(view) % unit and offset + len(view) != self.virtual_size):
            raise UnsupportedImage("a stream takes whole grains only", offset=offset)
        for at in range(0, len(view), unit):
            self.write_compressed(offset + at, None, view[at : at + unit])

    def write_compressed(
        self, offset: int, packed: bytes | None, plain: bytes | memoryview
    ) -> None:
        index = offset // self.compression_unit
        if self._grains and index <= next(reversed(self._grains)):
            raise UnsupportedImage("a stream is written front to back, once", offset=offset)
        if packed is None:
            packed = self._compress(bytes(plain).ljust(self.compression_unit, b"\0"))
        while index // self.header.table_entries > self._open_table:
            self._tables |= self._written_table()
            self._open_table += 1
        marker = struct.pack("<QI", index * self.header.grain, len(packed))
        self._grains[index] = (self._next + len(marker), len(packed))
        self._append(marker + packed)
        self._changed = True

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """What was never written is zeros; what was stays."""
        self._check(offset, length)
        if any(run.kind is ExtentKind.DATA for run in self._runs(offset, length)):
            raise UnsupportedImage("a stream is written front to back, once", offset=offset)

    def discard(self, offset: int, length: int) -> None:
        self.write_zeroes(offset, length)

    def _append(self, content: bytes) -> int:
        """Write whole sectors; return the first one's number."""
        place = self._next
        self._next += -(-len(content) // SECTOR) * SECTOR
        self.storage.pwrite(place, content.ljust(self._next - place, b"\0"))
        return place // SECTOR

    def _written_table(self) -> dict[int, int]:
        """Write the open grain table if any grain is in it; return its sector."""
        count = self.header.table_entries
        first = self._open_table * count
        # A grain begins with its marker, 12 bytes before the stream.
        sectors = [
            (self._grains[index][0] - 12) // SECTOR if index in self._grains else 0
            for index in range(first, first + count)
        ]
        if not any(sectors):
            return {}
        self._append(_marker(4 * count // SECTOR, _TABLE))
        return {self._open_table: self._append(struct.pack(f"<{count}I", *sectors))}

    def flush(self) -> None:
        if self._changed:
            self._changed = False
            grains_end = self._next
            self._finish()
            self._next = grains_end
        self.storage.flush()

    def _finish(self) -> None:
        tables = self._tables | self._written_table()
        count = -(-self.virtual_size // self.compression_unit)
        entries = -(-count // self.header.table_entries)
        sectors = -(-4 * entries // SECTOR)
        self._append(_marker(sectors, _DIRECTORY))
        directory = struct.pack(f"<{entries}I", *(tables.get(i, 0) for i in range(entries)))
        place = self._append(directory) if entries else self._next // SECTOR
        self._append(_marker(1, _FOOTER))
        self._append(replace(self.header, directory=place).pack())
        self._append(bytes(SECTOR))
        self.storage.truncate(self._next)

    def close(self) -> None:
        try:
            self.flush()
        finally:
            super().close()
