"""A part of a disk, as a disk of its own."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from wirt.errors import OutOfBounds
from wirt.image.base import Extent, Image, ImageInfo
from wirt.image.extents import chain_extents


class Part(Image):
    """The bytes of ``image`` from ``start`` to ``end``. Closing it closes the image."""

    format_name = "part"

    def __init__(self, image: Image, start: int, end: int) -> None:
        if not 0 <= start <= end <= image.virtual_size:
            raise OutOfBounds(f"{start} to {end} is not inside the disk")
        self._image = image
        self._start = start
        self.virtual_size = end - start
        self.storage = image.storage

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.virtual_size:
            raise OutOfBounds(f"{length} bytes at {offset:#x} are not inside the disk")

    def pread(self, offset: int, length: int) -> bytes:
        self._check(offset, length)
        return self._image.pread(offset + self._start, length)

    def pread_into(self, offset: int, buffer: memoryview) -> None:
        self._check(offset, len(buffer))
        self._image.pread_into(offset + self._start, buffer)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        self._check(offset, length)
        for extent in chain_extents(self._image, offset + self._start, length):
            yield replace(extent, offset=extent.offset - self._start)

    def info(self) -> ImageInfo:
        return self._image.info()

    def close(self) -> None:
        self._image.close()
