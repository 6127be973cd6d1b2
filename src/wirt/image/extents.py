"""Where each guest byte comes from, through the whole backing chain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec.structs import replace

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
    first: Extent | None = None
    length = 0
    for extent in extents:
        if first is not None and _continues(first, length, extent):
            length += extent.length  # a copy for each step would cost more than finding it
            continue
        if first is not None:
            yield _as_long(first, length)
        first, length = extent, extent.length
    if first is not None:
        yield _as_long(first, length)


def _as_long(extent: Extent, length: int) -> Extent:
    return extent if extent.length == length else replace(extent, length=length)


def _continues(first: Extent, length: int, extent: Extent) -> bool:
    """Return whether ``extent`` goes on where ``length`` bytes from ``first`` on end."""
    if first.kind is not extent.kind or first.depth != extent.depth:
        return False
    if first.compressed != extent.compressed or first.storage is not extent.storage:
        return False
    return _goes_on(first.storage_offset, length, extent.storage_offset) and _goes_on(
        first.reserved_offset, length, extent.reserved_offset
    )


def _goes_on(place: int | None, length: int, following: int | None) -> bool:
    if place is None or following is None:
        return place is following
    return place + length == following


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
