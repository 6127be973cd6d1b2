"""Where each guest byte comes from, through the whole backing chain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from wirt.image.base import Extent, ExtentKind, Image


def chain_extents(image: Image, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
    """Yield the runs of the guest disk in order and without gaps; ``depth`` says whose.

    A HOLE is allocated nowhere in the chain and reads as zeros; its depth is that of the
    last image that is long enough to have it. Without ``length`` the range ends with the
    disk. Raises ImageError.
    """
    if length is None:
        length = image.virtual_size - offset
    return joined(_descend(image, offset, length, 0))


def _descend(image: Image, offset: int, length: int, depth: int) -> Iterator[Extent]:
    if not length:
        return
    for extent in image.extents(offset, length):
        if extent.kind is ExtentKind.HOLE and image.backing is not None:
            yield from _behind(image.backing, extent, depth + 1)
        else:
            yield replace(extent, depth=depth) if depth else extent


def _behind(backing: Image, hole: Extent, depth: int) -> Iterator[Extent]:
    inside = max(0, min(hole.length, backing.virtual_size - hole.offset))
    yield from _descend(backing, hole.offset, inside, depth)
    if inside < hole.length:
        yield Extent(hole.offset + inside, hole.length - inside, ExtentKind.HOLE, depth - 1)


def joined(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Join neighbours in one state, of one depth, whose bytes also lie side by side."""
    last: Extent | None = None
    for extent in extents:
        if last is not None and _continues(last, extent):
            last = replace(last, length=last.length + extent.length)
            continue
        if last is not None:
            yield last
        last = extent
    if last is not None:
        yield last


def _continues(last: Extent, extent: Extent) -> bool:
    if (last.kind, last.depth, last.compressed) != (extent.kind, extent.depth, extent.compressed):
        return False
    if last.storage is not extent.storage or not _reserved_continues(last, extent):
        return False
    if last.storage_offset is None or extent.storage_offset is None:
        return last.storage_offset == extent.storage_offset
    return last.storage_offset + last.length == extent.storage_offset


def _reserved_continues(last: Extent, extent: Extent) -> bool:
    if last.reserved_offset is None or extent.reserved_offset is None:
        return last.reserved_offset is extent.reserved_offset
    return last.reserved_offset + last.length == extent.reserved_offset


def part_of(extent: Extent, start: int, end: int) -> Extent:
    """Return the part of ``extent`` between two guest offsets inside it."""
    place = extent.storage_offset
    if place is not None:
        place += start - extent.offset
    room = extent.reserved_offset
    if room is not None:
        room += start - extent.offset
    return replace(
        extent, offset=start, length=end - start, storage_offset=place, reserved_offset=room
    )
