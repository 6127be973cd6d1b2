"""Giving an image another backing image, or none, without changing what the guest sees.

What the new backing image would show differently is first written into the image itself,
where it changes nothing as long as the old link holds. When all of that is durable, the
header is switched by one sector. Killed anywhere, the image is as before or rebased.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

from wirt.errors import UsageError
from wirt.image.base import (
    AllowLocalFiles,
    Budget,
    Extent,
    ExtentKind,
    Image,
    ImageInfo,
    OpenGate,
    Overlay,
)
from wirt.image.compare import first_difference, reads_zero, same_place, side_by_side
from wirt.image.expansion import refuse_expansion
from wirt.image.extents import part_of
from wirt.image.layers import backing_path, open_backing, open_overlay
from wirt.image.open import open_image
from wirt.image.pipeline import cut
from wirt.image.probe import probe_file
from wirt.image.progress import Progress, silent
from wirt.image.transfer import Transfer

_PIECE = 64 << 10


def rebase(
    path: str,
    backing: str,
    *,
    backing_format: str = "",
    format: str | None = None,  # noqa: A002 - the word of qemu-img and of the field
    unsafe: bool = False,
    gate: OpenGate | None = None,
    budget: Budget | None = None,
    secret: bytes | None = None,
    progress: Progress = silent,
) -> None:
    """Make ``backing`` the backing image; nothing means none (then the image is independent).

    ``backing`` is a name as it is to be stored: a relative one means beside the image.
    ``unsafe`` only changes the link, which is right when the backing image was moved.
    Raises ImageError, UsageError.
    """
    gate = gate or AllowLocalFiles()
    with ExitStack() as stack:
        image = open_overlay(stack, path, format=format, gate=gate, secret=secret)
        new_path = os.path.join(os.path.dirname(path), backing) if backing else ""
        if backing and not backing_format:
            if unsafe:
                raise UsageError("the format of the backing image must be named")
            backing_format = probe_file(new_path)
        if not unsafe:
            new = None
            if backing:
                new = open_image(new_path, format=backing_format, gate=gate)
                stack.enter_context(new)
            if backing_path(image, path):
                image.backing = open_backing(image, path, gate=gate)
            keep_what_differs(image, new, budget=budget, progress=progress)
        image.set_backing(backing or None, backing_format or None)
        image.flush()


def flatten(
    path: str,
    *,
    format: str | None = None,  # noqa: A002 - the word of qemu-img and of the field
    gate: OpenGate | None = None,
    budget: Budget | None = None,
    secret: bytes | None = None,
    progress: Progress = silent,
) -> None:
    """Make the image independent of its backing chain. Raises ImageError, UsageError."""
    rebase(path, "", format=format, gate=gate, budget=budget, secret=secret, progress=progress)


def keep_what_differs(
    image: Overlay,
    new: Image | None,
    *,
    budget: Budget | None = None,
    progress: Progress = silent,
) -> None:
    """Write into ``image`` what ``new``, or zeros without it, would show differently below it.

    Returns when that is durable: then the link may be changed.
    """
    for disk in (image, new):
        if disk is not None:
            refuse_expansion(disk, budget or Budget())
    view = _Differing(image, new)
    Transfer(view, image, writes_zeros=new is not None, top_only=True, progress=progress).run()
    image.flush()


class _Differing(Image):
    """The disk of ``image``, as if it held just what a new backing image would show wrong."""

    format_name = "differing"

    def __init__(self, image: Image, new: Image | None) -> None:
        self._image = image
        self._old = image.backing
        self._new = new
        self.storage = image.storage
        self.virtual_size = image.virtual_size

    def pread(self, offset: int, length: int) -> bytes:
        return self._image.pread(offset, length)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        for extent in self._image.extents(offset, length):
            if extent.kind is ExtentKind.HOLE:
                yield from self._differences(extent.offset, extent.end)
            else:
                yield Extent(extent.offset, extent.length, ExtentKind.HOLE)

    def _differences(self, offset: int, end: int) -> Iterator[Extent]:
        at = offset
        for start, stop, old, new in side_by_side(self._old, self._new, offset, end):
            at = stop
            if (reads_zero(old) and reads_zero(new)) or same_place(old, new):
                yield Extent(start, stop - start, ExtentKind.HOLE)
            elif old is not None and reads_zero(new):
                yield part_of(old, start, stop)
            else:
                yield from self._compared(start, stop, old, new)
        if at < end:
            yield Extent(at, end - at, ExtentKind.HOLE)

    def _compared(
        self, start: int, stop: int, old: Extent | None, new: Extent | None
    ) -> Iterator[Extent]:
        here = None if reads_zero(old) else self._old
        there = None if reads_zero(new) else self._new
        kind = ExtentKind.ZERO if here is None else ExtentKind.DATA
        for at, to in cut(start, stop, _PIECE):
            differs = first_difference(here, there, at, to) is not None
            yield Extent(at, to - at, kind if differs else ExtentKind.HOLE)

    def info(self) -> ImageInfo:
        return self._image.info()
