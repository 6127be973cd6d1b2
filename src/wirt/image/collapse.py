"""A chain made shorter: all that lies above some image of it, in one new file.

The images of the chain are only read, so whoever stands on one of them is not disturbed; and a
new file beside an old one is lost or whole, unlike a flattening in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from wirt.image.base import Budget, Extent, ExtentKind, Image, ImageInfo, OpenGate
from wirt.image.convert import ConvertSettings, convert
from wirt.image.expansion import refuse_expansion
from wirt.image.extents import chain_extents
from wirt.image.progress import Progress, silent


def layers(image: Image) -> Iterator[Image]:
    """Yield an image and all that it stands on."""
    layer: Image | None = image
    while layer is not None:
        yield layer
        layer = layer.backing


def needed_space(image: Image, depth: int | None) -> int:
    """Return the bytes that ``collapse`` may write, without compression and zeros it finds."""
    extents = chain_extents(image)
    return sum(
        extent.length
        for extent in extents
        if extent.kind is ExtentKind.DATA and (depth is None or extent.depth < depth)
    )


def collapse(
    image: Image,
    target: str,
    depth: int | None,
    *,
    gate: OpenGate,
    progress: Progress = silent,
) -> None:
    """Make the qcow2 image ``target`` of what lies above the layer ``depth`` of a disk.

    It stands on that layer; for None, on nothing. It appears when it is whole and durable.
    Raises ImageError; then there is none.
    """
    refuse_expansion(image, Budget())
    trusted = Budget(expansion=1 << 62)  # ``_Above`` does not know what the layers store
    if depth is None:
        convert([image], target, "qcow2", ConvertSettings(budget=trusted), progress=progress)
        return
    base = list(layers(image))[depth]
    settings = ConvertSettings(
        backing=base.storage.name, backing_format=base.format_name, budget=trusted, gate=gate
    )
    convert([_Above(image, depth)], target, "qcow2", settings, progress=progress)


class _Above(Image):
    """A disk as if it were one image that holds all that lies above the layer ``depth``."""

    format_name = "above"

    def __init__(self, image: Image, depth: int) -> None:
        self._image = image
        self._depth = depth
        self.storage = image.storage
        self.virtual_size = image.virtual_size

    def pread(self, offset: int, length: int) -> bytes:
        return self._image.pread(offset, length)

    def pread_into(self, offset: int, buffer: memoryview) -> None:
        self._image.pread_into(offset, buffer)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        for extent in chain_extents(self._image, offset, length):
            if extent.depth >= self._depth:
                yield Extent(extent.offset, extent.length, ExtentKind.HOLE)
            elif extent.kind is ExtentKind.HOLE:  # a layer above was shorter: it hides the base
                yield Extent(extent.offset, extent.length, ExtentKind.ZERO)
            else:
                yield replace(extent, depth=0)

    def info(self) -> ImageInfo:
        return self._image.info()
