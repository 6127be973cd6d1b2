"""The images of a backing chain, each opened by itself, for operations that change one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

from wirt.errors import ImageAccessDenied, UnsupportedImage, UsageError
from wirt.image.base import HasSnapshots, Image, OpenGate, Overlay
from wirt.image.concatenated import Concatenated
from wirt.image.open import open_image


def backing_path(image: Image, path: str) -> str:
    """Return the path of the backing image that the image at ``path`` names, or nothing."""
    name = image.info().backing_name.removeprefix("file:")
    return os.path.join(os.path.dirname(path), name) if name else ""


def open_overlay(
    stack: ExitStack,
    path: str,
    *,
    format: str | None,  # noqa: A002 - as open_image
    gate: OpenGate,
    secret: bytes | None = None,
) -> Overlay:
    """Open the first image of a chain for writing, without its backing image.

    Raises UnsupportedImage if its link to the backing image cannot be changed safely.
    """
    image = stack.enter_context(
        open_image(path, format=format, writable=True, gate=gate, secret=secret, with_backing=False)
    )
    if not isinstance(image, Overlay):
        raise UnsupportedImage(
            f"the backing image of a {image.format_name} image cannot be changed in place",
            path=path,
            hint="convert it: wirt img convert",
        )
    if isinstance(image, HasSnapshots) and image.snapshots():
        raise UsageError(
            "the image has internal snapshots, whose disks show the backing image too",
            hint="remove them first: wirt img snapshot rm, or convert the image",
        )
    return image


def open_backing(
    image: Image,
    path: str,
    *,
    gate: OpenGate,
    writable: bool = False,
    with_backing: bool = True,
) -> Image:
    """Open the backing image that the image at ``path`` names. The caller closes it.

    Raises UsageError if it names none, ImageAccessDenied if the gate does not let it open.
    """
    below = backing_path(image, path)
    if not below:
        raise UsageError(f"{path} has no backing image")
    info = image.info()
    if not gate.allows(info.backing_name, role="backing", referrer=path):
        raise ImageAccessDenied(
            f"the image names a backing file, which is not opened unasked: {info.backing_name!r}",
            path=path,
            hint=f"if you trust the image: wirt img … --allow {below}",
        )
    return open_image(
        below,
        format=info.backing_format or None,
        gate=gate,
        writable=writable,
        with_backing=with_backing,
    )


def layers(image: Image) -> Iterator[Image]:
    """Yield an image and all that it stands on; of several in a row, each with its own."""
    if isinstance(image, Concatenated):
        for part in image.parts:
            yield from layers(part)
        return
    layer: Image | None = image
    while layer is not None:
        yield layer
        layer = layer.backing
