"""Where two disks differ, without reading what both have from the same image."""

from __future__ import annotations

import os
from collections.abc import Iterator

from wirt.image.base import Budget, Extent, Image
from wirt.image.compare import reads_zero, same_place, side_by_side
from wirt.image.expansion import refuse_expansion
from wirt.image.layers import layers
from wirt.image.pipeline import cut
from wirt.image.progress import Progress, silent

BLOCK = 4096
"""Differences are told in blocks of so many bytes."""
_PIECE = 1 << 20

Range = tuple[int, int]
"""First byte, and the one behind the last."""


def differences(
    first: Image, second: Image, *, budget: Budget | None = None, progress: Progress = silent
) -> Iterator[Range]:
    """Yield the ranges in which two disks differ, in order, neighbours joined.

    Their chains are followed down to the first image that both stand on; what either shows of
    it is not read. What one disk has beyond the other is compared with zeros. Raises ImageError.
    """
    for image in (first, second):
        refuse_expansion(image, budget or Budget())
    last: Range | None = None
    for start, end in _blocks(first, second, progress):
        if last is not None and last[1] == start:
            last = (last[0], end)
            continue
        if last is not None:
            yield last
        last = (start, end)
    if last is not None:
        yield last


def _blocks(first: Image, second: Image, progress: Progress) -> Iterator[Range]:
    total = max(first.virtual_size, second.virtual_size)
    shared = common_layer(first, second)
    for start, end, one, other in side_by_side(first, second):
        progress(start, total)
        if (reads_zero(one) and reads_zero(other)) or same_place(one, other):
            continue
        if _both_below(one, other, shared):
            continue
        here = None if reads_zero(one) else first
        there = None if reads_zero(other) else second
        for at, stop in cut(start, end, _PIECE):
            yield from _compared(here, there, at, stop)
            progress(stop, total)


def _both_below(one: Extent | None, other: Extent | None, shared: tuple[int, int] | None) -> bool:
    if shared is None or one is None or other is None:
        return False
    return one.depth >= shared[0] and other.depth >= shared[1]


def _compared(here: Image | None, there: Image | None, start: int, end: int) -> Iterator[Range]:
    one = bytes(end - start) if here is None else here.pread(start, end - start)
    other = bytes(end - start) if there is None else there.pread(start, end - start)
    if one == other:
        return
    for at, stop in cut(start, end, BLOCK):
        if one[at - start : stop - start] != other[at - start : stop - start]:
            yield at, stop


def common_layer(first: Image, second: Image) -> tuple[int, int] | None:
    """Return how deep below each disk the nearest image lies that both stand on."""
    depths = {identity: depth for depth, identity in enumerate(_files(second)) if identity}
    for depth, identity in enumerate(_files(first)):
        if identity in depths:
            return depth, depths[identity]
    return None


def _files(image: Image) -> Iterator[tuple[int, int] | None]:
    for layer in layers(image):
        descriptor = layer.storage.fileno()
        info = os.fstat(descriptor) if descriptor is not None else None
        yield (info.st_dev, info.st_ino) if info else None
