"""An open UDIF image, and a plain disk inside an encrypted one."""

from __future__ import annotations

from wirt.errors import CorruptImage
from wirt.image.base import Extent, ExtentKind, ImageInfo, OpenOptions, Storage
from wirt.image.formats.dmg import chunks
from wirt.image.formats.dmg.chunks import Chunk, ChunkMap, parse_table
from wirt.image.formats.dmg.decoders import unpack
from wirt.image.formats.dmg.encryption import data_place, locked
from wirt.image.formats.dmg.trailer import Trailer, block_tables
from wirt.image.formats.mapped import SECTOR, MappedImage, read_exactly, stored_size


class DmgImage(MappedImage):
    format_name = "dmg"

    def __init__(
        self, storage: Storage, trailer: Trailer, options: OpenOptions, *, encrypted: bool
    ) -> None:
        self.storage = storage
        self._encrypted = encrypted
        tables = block_tables(storage, trailer, options.budget)
        fork = trailer.data[0]
        self._map = ChunkMap(chunk for raw in tables for chunk in parse_table(raw, fork))
        self.virtual_size = max(trailer.sectors * SECTOR, self._map.end)
        if self.virtual_size > 1 << 56:
            raise CorruptImage(f"a disk cannot have {trailer.sectors} sectors")
        self._last: tuple[Chunk | None, bytes] = (None, b"")

    def _run(self, offset: int, limit: int) -> Extent:
        chunk, end = self._map.find(offset)
        length = min(limit, end - offset)
        if chunk is None:
            return Extent(offset, length, ExtentKind.HOLE)
        if chunk.kind in {chunks.ZERO, chunks.UNUSED}:
            return Extent(offset, length, ExtentKind.ZERO)
        if chunk.kind == chunks.PLAIN:
            return self._plain(chunk, offset, length)
        return Extent(offset, length, ExtentKind.DATA, compressed=True)

    def _plain(self, chunk: Chunk, offset: int, length: int) -> Extent:
        inside = offset - chunk.start
        if inside >= chunk.stored:
            return Extent(offset, length, ExtentKind.ZERO)
        length = min(length, chunk.stored - inside)
        place = chunk.place + inside
        if place + length > self.storage.size():
            raise CorruptImage("a chunk lies beyond the end of the file", offset=place)
        return Extent(offset, length, ExtentKind.DATA, storage=self.storage, storage_offset=place)

    def _read_packed(self, offset: int, length: int) -> bytes:
        parts = []
        while length:
            chunk, _ = self._map.find(offset)
            if chunk is None:
                raise CorruptImage("there is no chunk here", offset=offset)
            inside = offset - chunk.start
            part = self._unpacked(chunk)[inside : inside + length]
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def _unpacked(self, chunk: Chunk) -> bytes:
        last, content = self._last
        if last is not chunk:
            packed = read_exactly(self.storage, chunk.place, chunk.stored, "a chunk")
            content = unpack(chunk.kind, packed, chunk.end - chunk.start)
            self._last = (chunk, content)
        return content

    def info(self) -> ImageInfo:
        size = stored_size(self.storage)
        return ImageInfo("dmg", self.virtual_size, size, encrypted=self._encrypted)


class PlainDmgImage(MappedImage):
    """The disk itself, encrypted."""

    format_name = "dmg"

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.virtual_size = -(-storage.size() // SECTOR) * SECTOR

    def _run(self, offset: int, limit: int) -> Extent:
        return Extent(offset, limit, ExtentKind.DATA, storage=self.storage, storage_offset=offset)

    def info(self) -> ImageInfo:
        return ImageInfo("dmg", self.virtual_size, stored_size(self.storage), encrypted=True)


class LockedDmgImage(MappedImage):
    """An encrypted image without its passphrase: what is inside is not known, nor its size."""

    format_name = "dmg"

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.virtual_size = -(-data_place(storage)[1] // SECTOR) * SECTOR

    def _run(self, offset: int, limit: int) -> Extent:
        return Extent(offset, limit, ExtentKind.DATA)

    def _read_packed(self, offset: int, length: int) -> bytes:
        raise locked()

    def info(self) -> ImageInfo:
        return ImageInfo("dmg", self.virtual_size, stored_size(self.storage), encrypted=True)
