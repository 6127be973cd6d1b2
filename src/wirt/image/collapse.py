"""A chain made shorter: all that lies above some image of it, in one new file.

The images of the chain are only read, so whoever stands on one of them is not disturbed; and a
new file beside an old one is lost or whole, unlike a flattening in place.
"""

from __future__ import annotations

from wirt.image.above import Above
from wirt.image.base import Budget, ExtentKind, Image, OpenGate
from wirt.image.convert import ConvertSettings, convert
from wirt.image.expansion import refuse_expansion
from wirt.image.extents import chain_extents
from wirt.image.layers import layers
from wirt.image.progress import Progress, silent


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
    trusted = Budget(expansion=1 << 62)  # ``Above`` does not know what the layers store
    if depth is None:
        convert([image], target, "qcow2", ConvertSettings(budget=trusted), progress=progress)
        return
    base = list(layers(image))[depth]
    settings = ConvertSettings(
        backing=base.storage.name, backing_format=base.format_name, budget=trusted, gate=gate
    )
    convert([Above(image, base)], target, "qcow2", settings, progress=progress)
