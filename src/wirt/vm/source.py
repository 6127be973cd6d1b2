"""What a user names as IMAGE: a guest image of wirt's, a disk image file, or a CD."""

from __future__ import annotations

import os
from dataclasses import dataclass

from wirt.catalog.catalog import Catalog
from wirt.catalog.image import GuestImage
from wirt.errors import NotFound, SpecError
from wirt.image.open import open_image
from wirt.image.probe import probe_file
from wirt.vm.context import Context


@dataclass(frozen=True, slots=True)
class DiskFile:
    """A disk image of the user's: absolute path, format, virtual size in bytes."""

    path: str
    format: str
    virtual_size: int


@dataclass(frozen=True, slots=True)
class CdFile:
    """A CD or DVD image."""

    path: str


Source = GuestImage | DiskFile | CdFile


def resolve(context: Context, image: str, *, image_format: str = "") -> Source:
    """Return what ``image`` names. Raises NotFound, NotThisFormat, AmbiguousFormat."""
    if os.path.exists(image):
        return _file(context, os.path.abspath(image), image_format)
    if "/" in image:
        raise NotFound(f"there is no file {image}", hint="check the path")
    return Catalog(context.home.images).find(image)


def _file(context: Context, path: str, image_format: str) -> DiskFile | CdFile:
    if path.lower().endswith(".iso") and not image_format:
        return CdFile(path)
    if not image_format:
        image_format = probe_file(path)
        context.say(f"{os.path.basename(path)} is taken as {image_format} (--format says another)")
    with open_image(path, format=image_format, with_backing=False) as opened:
        return DiskFile(path, image_format, opened.virtual_size)


def parse_distribution(image: str) -> bool:
    """True if ``image`` reads like something that ``wirt build`` can make: ``debian:12``."""
    distribution, colon, release = image.partition(":")
    return bool(colon and release and distribution.isalpha() and "/" not in image)


def check_backing_free(source: DiskFile) -> None:
    """Refuse an image that names other files: a stranger's image could name any of ours."""
    with open_image(source.path, format=source.format, with_backing=False) as image:
        name = image.info().backing_name
    if name:
        raise SpecError(
            f"{source.path} needs another file: {name}",
            hint=f"if you trust it: wirt img flatten {source.path}",
        )
