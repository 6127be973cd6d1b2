"""A disk as if it were one image that holds all that lies above some image of its chain."""

from __future__ import annotations

from collections.abc import Iterator

from wirt.image.base import Extent, ExtentKind, Image, ImageInfo


class Above(Image):
    """The disk of ``image``; only what it and the images above ``base`` hold counts."""

    format_name = "above"

    def __init__(self, image: Image, base: Image) -> None:
        self._image = image
        self._base = base
        self.storage = image.storage
        self.virtual_size = image.virtual_size

    def pread(self, offset: int, length: int) -> bytes:
        return self._image.pread(offset, length)

    def pread_into(self, offset: int, buffer: memoryview) -> None:
        self._image.pread_into(offset, buffer)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        return _held(self._image, self._base, offset, length)

    def info(self) -> ImageInfo:
        return self._image.info()


def _held(image: Image, base: Image, offset: int, length: int) -> Iterator[Extent]:
    inside = max(0, min(length, image.virtual_size - offset))
    for extent in image.extents(offset, inside) if inside else ():
        below = image.backing
        if extent.kind is ExtentKind.HOLE and below is not None and below is not base:
            yield from _held(below, base, extent.offset, extent.length)
        else:
            yield extent
    if inside < length:
        # A shorter image in between hides what is below it with zeros.
        yield Extent(offset + inside, length - inside, ExtentKind.ZERO)
