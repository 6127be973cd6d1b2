"""Bytes inside other bytes: a part of a storage, and an image as a storage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from wirt.cli.kvm_img.failure import Failure
from wirt.cli.kvm_img.sizes import BadSize, SizeRange, parse_size
from wirt.errors import ImageIoError
from wirt.image.base import ExtentKind, Image, Resizable, Storage, WritableImage
from wirt.image.extents import chain_extents

_SECTOR = 512


class Window(Storage):
    """``size`` bytes of ``storage`` from ``offset`` on (raw's options of these names)."""

    def __init__(self, storage: Storage, offset: Any, size: Any) -> None:
        whole = storage.size()
        self._inner = storage
        self._start = _number("offset", offset) if offset is not None else 0
        if self._start > whole:
            raise Failure(
                f"Offset ({self._start}) cannot be greater than size of the containing file "
                f"({whole})"
            )
        room = whole - self._start
        self._size = _number("size", size) if size is not None else room
        if size is not None and self._size > room:
            raise Failure(
                f"The sum of offset ({self._start}) and size ({self._size}) has to be smaller or "
                f"equal to the  actual size of the containing file ({whole})"
            )
        if size is not None and self._size % _SECTOR:
            raise Failure("Specified size is not multiple of 512")
        self.name = storage.name
        self.read_only = storage.read_only

    def size(self) -> int:
        return self._size

    def pread(self, offset: int, length: int) -> bytes:
        return self._inner.pread(self._start + offset, max(0, min(length, self._size - offset)))

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        if offset + memoryview(data).nbytes > self._size:
            raise ImageIoError("the write reaches past the end of this part of the file")
        self._inner.pwrite(self._start + offset, data)

    def truncate(self, size: int) -> None:
        raise ImageIoError("Cannot resize fixed-size raw disks")

    def flush(self) -> None:
        self._inner.flush()

    def close(self) -> None:
        self._inner.close()

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        length = max(0, min(length, self._size - offset))
        for start, run, is_data in self._inner.extents(self._start + offset, length):
            yield start - self._start, run, is_data


class ImageStorage(Storage):
    """The disk of an image as the file of another."""

    def __init__(self, image: Image, *, read_only: bool) -> None:
        self._image = image
        self.name = image.storage.name
        self.read_only = read_only or not isinstance(image, WritableImage)

    def size(self) -> int:
        return self._image.virtual_size

    def pread(self, offset: int, length: int) -> bytes:
        return self._image.pread(offset, max(0, min(length, self.size() - offset)))

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        if self.read_only or not isinstance(self._image, WritableImage):
            raise ImageIoError("the image below is open for reading only")
        end = offset + memoryview(data).nbytes
        if end > self.size():
            self.truncate(-(-end // _SECTOR) * _SECTOR)
        self._image.pwrite(offset, data)

    def truncate(self, size: int) -> None:
        if not isinstance(self._image, Resizable):
            raise ImageIoError("the image below cannot be resized")
        self._image.resize(size)

    def flush(self) -> None:
        if isinstance(self._image, WritableImage):
            self._image.flush()

    def close(self) -> None:
        self._image.close()

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        length = max(0, min(length, self.size() - offset))
        for extent in chain_extents(self._image, offset, length):
            yield extent.offset, extent.length, extent.kind is ExtentKind.DATA


def _number(name: str, value: Any) -> int:
    try:
        return parse_size(str(value))
    except (BadSize, SizeRange):
        raise Failure(f"Parameter '{name}' expects a non-negative number below 2^64") from None
