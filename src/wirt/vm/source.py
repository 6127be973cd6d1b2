"""What a user names as IMAGE: a guest image of wirt's, a disk image file, or a CD."""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

from wirt.catalog.catalog import Catalog
from wirt.catalog.image import StoredImage
from wirt.errors import NotFound, NotThisFormat, SpecError
from wirt.vm.context import Context


class DiskFile(msgspec.Struct, frozen=True):
    """A disk image of the user's: absolute path, format, virtual size in bytes."""

    path: str
    format: str
    virtual_size: int


class CdFile(msgspec.Struct, frozen=True):
    """A CD or DVD image."""

    path: str


_RAW_SUFFIXES = (".raw", ".img", ".bin", ".dd")

Source = StoredImage | DiskFile | CdFile


def resolve(context: Context, image: str, *, image_format: str = "") -> Source:
    """Return what ``image`` names. Raises NotFound, NotThisFormat, AmbiguousFormat."""
    if os.path.exists(image):
        return _file(context, os.path.abspath(image), image_format)
    if "/" in image:
        raise NotFound(f"there is no file {image}", hint="check the path")
    return Catalog(Path(context.home.images)).find(image)


def resolve_or_build(context: Context, image: str, *, image_format: str = "") -> Source:
    """Like ``resolve``, but builds a distribution (``debian:12``) that is not there yet."""
    try:
        return resolve(context, image, image_format=image_format)
    except NotFound:
        if not is_distribution(image):
            raise
    from wirt.catalog.build import build_image
    from wirt.catalog.recipe import Recipe

    context.say(f"{image} is built first, once; this takes some minutes")
    catalog = Catalog(Path(context.home.images))
    return build_image(catalog, Recipe(distribution=image), step=context.say)


def _file(context: Context, path: str, image_format: str) -> DiskFile | CdFile:
    if path.lower().endswith(".iso") and not image_format:
        return CdFile(path)
    from wirt.image.open import open_image
    from wirt.image.probe import probe_file

    if not image_format:
        image_format = probe_file(path)
        if image_format == "raw" and not path.endswith(_RAW_SUFFIXES):
            raise NotThisFormat(
                "no known disk format; if these are the plain bytes of a disk, say so",
                path=path,
                hint="--format raw",
            )
        context.say(f"{os.path.basename(path)} is taken as {image_format} (--format says another)")
    with open_image(path, format=image_format, with_backing=False) as opened:
        return DiskFile(path, image_format, opened.virtual_size)


def is_distribution(image: str) -> bool:
    """True if ``image`` reads like something that ``wirt build`` can make: ``debian:12``."""
    return re.fullmatch(r"(debian|ubuntu):[\w.-]+", image) is not None


def check_backing_free(source: DiskFile) -> None:
    """Refuse an image that names other files: a stranger's image could name any of ours."""
    from wirt.image.open import open_image
    from wirt.vm.served import can_be_served

    with open_image(source.path, format=source.format, with_backing=False) as image:
        name = image.info().backing_name
    if name and not can_be_served(source.path, source.format):
        raise SpecError(
            f"{source.path} needs another file: {name}",
            hint=f"if you trust it: wirt img flatten {source.path}",
        )
