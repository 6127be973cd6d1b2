"""Committing: what an overlay holds moves into an image of its backing chain.

The overlay shows the same bytes all the while: it hides what is written below it. It is
emptied only when everything below is durable. Killed anywhere, its guest loses nothing.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from wirt.errors import ImageAccessDenied, ImageError, UnsupportedImage, UsageError
from wirt.image.above import Above
from wirt.image.base import (
    AllowLocalFiles,
    Budget,
    Image,
    OpenGate,
    Overlay,
    Resizable,
    WritableImage,
)
from wirt.image.expansion import refuse_expansion
from wirt.image.layers import backing_path, open_backing, open_overlay
from wirt.image.probe import claims
from wirt.image.progress import Progress, silent
from wirt.image.storage.scratch import Scratch
from wirt.image.transfer import Transfer

_EDGE = 1 << 20
"""Bytes at both ends of a disk by which formats are known."""


def commit(
    path: str,
    *,
    base: str = "",
    format: str | None = None,  # noqa: A002 - the word of qemu-img and of the field
    keep: bool = False,
    rate_limit: int = 0,
    gate: OpenGate | None = None,
    budget: Budget | None = None,
    secret: bytes | None = None,
    progress: Progress = silent,
) -> str:
    """Write what ``path`` holds into its backing image and empty it; return the latter's path.

    ``base`` names an image further down the chain, as the chain names it or by its path;
    images between are then passed over and become useless, so ``path`` is not emptied.
    ``keep`` leaves ``path`` as it is. A smaller backing image grows. Raises ImageError, UsageError.
    """
    gate = gate or AllowLocalFiles()
    with ExitStack() as stack:
        image = open_overlay(stack, path, format=format, gate=gate, secret=secret)
        target, target_path = _open_chain(image, path, base, gate)
        if target.virtual_size < image.virtual_size:
            _grow(target, image.virtual_size, target_path)
        write_down(image, target, rate_limit=rate_limit, budget=budget, progress=progress)
        if not keep and image.backing is target:
            image.make_empty()
            image.flush()
        if image.backing is target:
            image.accept_backing()
        return target_path


def write_down(
    image: Image,
    target: WritableImage,
    *,
    rate_limit: int = 0,
    budget: Budget | None = None,
    progress: Progress = silent,
) -> None:
    """Write into ``target``, an image of its chain, what ``image`` and those between hold.

    Returns when that is durable: then ``image`` may be emptied.
    """
    refuse_expansion(image, budget or Budget())
    _refuse_disguise(image, target)
    Transfer(
        Above(image, target),
        target,
        writes_zeros=True,
        top_only=True,
        rate_limit=rate_limit,
        progress=progress,
    ).run()
    target.flush()


def _refuse_disguise(image: Image, target: Image) -> None:
    """Refuse to make a disk that was only taken for raw look like another format.

    A guest decides what its disk begins with, and whoever opens the base next would follow it.
    """
    above = image
    while above.backing is not None and above.backing is not target:
        above = above.backing
    if target.format_name != "raw" or above.info().backing_format:
        return
    size = max(image.virtual_size, target.virtual_size)
    with Scratch() as shown:
        shown.truncate(size)
        for start in {0, max(0, size - _EDGE)}:
            end = min(start + _EDGE, image.virtual_size)
            shown.pwrite(start, image.pread(start, max(0, end - start)))
        found = claims(shown)
    if found:
        raise ImageAccessDenied(
            f"the base would look like {found[0]}, and nothing says that it is raw",
            hint="say so: wirt img rebase --unsafe -F raw OVERLAY BASE; a qcow 1 overlay cannot: "
            "wirt img convert OVERLAY NEW.qcow2",
        )


def _open_chain(image: Overlay, path: str, base: str, gate: OpenGate) -> tuple[WritableImage, str]:
    """Open the chain below ``image`` down to the one to write, and that for writing."""
    layer: Image = image
    while True:
        below = backing_path(layer, path)
        if not below:
            raise UsageError(
                f"{base} is not in the backing chain" if base else f"{path} has no backing image"
            )
        is_base = not base or base == layer.info().backing_name or _same_file(base, below)
        layer.backing = open_backing(layer, path, gate=gate, writable=is_base, with_backing=is_base)
        layer, path = layer.backing, below
        if is_base:
            break
    if not isinstance(layer, WritableImage):
        raise UnsupportedImage(f"{layer.format_name} images cannot be written", path=path)
    return layer, path


def _same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _grow(target: Image, size: int, path: str) -> None:
    if not isinstance(target, Resizable):
        raise UnsupportedImage(
            f"the backing image is smaller, and {target.format_name} images cannot grow",
            path=path,
        )
    try:
        target.resize(size)
    except ImageError as error:
        error.path = error.path or path
        raise
