"""raw: the bytes of the disk, one by one. There is no header and nothing to probe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from wirt.errors import OutOfBounds, UsageError
from wirt.image.base import (
    DirectAllocator,
    Extent,
    ExtentKind,
    Format,
    ImageInfo,
    OpenOptions,
    Resizable,
    Storage,
)
from wirt.image.storage.file import FileStorage

_SECTOR = 512
_BLOCK = 4096
_ZEROES = bytes(1 << 20)


class PlainImage(DirectAllocator):
    """Bytes that are the disk's. A partial last sector is filled up with zeros."""

    format_name = "raw"
    writes_in_any_order = True

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.direct_storage = storage
        self.virtual_size = -(-storage.size() // _SECTOR) * _SECTOR

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.virtual_size:
            raise OutOfBounds(f"{length} bytes at {offset:#x} are not inside the disk")

    def pread(self, offset: int, length: int) -> bytes:
        self._check(offset, length)
        return self.storage.pread(offset, length).ljust(length, b"\0")

    def pread_into(self, offset: int, buffer: memoryview) -> None:
        self._check(offset, len(buffer))
        self.storage.pread_into(offset, buffer)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        self._check(offset, length)
        position = offset
        for start, run, is_data in self.storage.extents(offset, length):
            kind = ExtentKind.DATA if is_data else ExtentKind.ZERO
            yield Extent(start, run, kind, storage=self.storage, storage_offset=start)
            position = start + run
        if position < offset + length:
            yield Extent(position, offset + length - position, ExtentKind.ZERO)

    def info(self) -> ImageInfo:
        storage = self.storage
        size = storage.allocated_size() if isinstance(storage, FileStorage) else storage.size()
        return ImageInfo("raw", self.virtual_size, size)

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._check(offset, memoryview(data).nbytes)
        self.storage.pwrite(offset, data)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self._check(offset, length)
        if unmap and self.storage.punch_hole(offset, length):
            return
        while length:
            step = min(length, len(_ZEROES))
            self.storage.pwrite(offset, memoryview(_ZEROES)[:step])
            offset += step
            length -= step

    def discard(self, offset: int, length: int) -> None:
        self.write_zeroes(offset, length)

    def flush(self) -> None:
        self.storage.flush()

    @property
    def can_allocate(self) -> bool:
        return True

    def allocate(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        self._check(offset, length)
        yield offset, offset, length

    def bulk_write(self) -> _Bulk:
        return _Bulk(self)


class RawImage(PlainImage, Resizable):
    """A file."""

    def resize(self, size: int, *, preallocation: str = "off") -> None:
        size = -(-size // _SECTOR) * _SECTOR
        old = self.virtual_size
        self.storage.truncate(size)
        self.virtual_size = size
        if size > old:
            preallocate(self.storage, old, size, preallocation)


class _Bulk:
    """Nothing to order in a file without metadata: only the last flush counts."""

    def __init__(self, image: PlainImage) -> None:
        self._image = image

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._image.flush()


def preallocate(storage: Storage, start: int, end: int, how: str) -> None:
    """Reserve bytes from ``start`` to ``end``: ``off``, ``falloc`` or ``full``."""
    if how == "off":
        return
    if how not in {"falloc", "full"}:
        raise UsageError(f"Unsupported preallocation mode: {how}", hint="off, falloc or full")
    if how == "falloc" and storage.reserve(start, end - start):
        return
    for offset in range(start, end, len(_ZEROES)):
        storage.pwrite(offset, memoryview(_ZEROES)[: end - offset])


class RawFormat(Format):
    name = "raw"
    suffixes = (".raw", ".img")
    images = (RawImage,)

    def probe(self, storage: Storage) -> bool:
        """Never claim a file: a guest writes what it likes into a raw disk."""
        return False

    def open(self, storage: Storage, options: OpenOptions) -> RawImage:
        return RawImage(storage)

    def create(self, storage: Storage, size: int, options: Mapping[str, str]) -> None:
        unknown = sorted(set(options) - {"preallocation", "size"})
        if unknown:
            raise UsageError(f"Invalid parameter '{unknown[0]}'")
        storage.truncate(-(-size // _SECTOR) * _SECTOR)
        # As QEMU: a hole at the start would hide from it how requests must be aligned.
        storage.pwrite(0, memoryview(_ZEROES)[: _BLOCK if size >= _BLOCK else min(size, _SECTOR)])
        preallocate(storage, 0, size, options.get("preallocation", "off"))


FORMAT = RawFormat()
