"""Making empty images."""

from __future__ import annotations

import os
from collections.abc import Mapping

from wirt.errors import ImageError
from wirt.image.locks import WRITER, lock
from wirt.image.registry import find_format
from wirt.image.storage.file import FileStorage


def create_image(
    path: str,
    format: str,  # noqa: A002 - the word of qemu-img and of the field
    size: int,
    *,
    backing: str = "",
    backing_format: str = "",
    options: Mapping[str, str] | None = None,
) -> None:
    """Make an image of ``size`` guest bytes; what exists at ``path`` is overwritten.

    ``backing`` makes it a copy-on-write overlay of that image, whose format must be named.
    Raises ImageError; a new file is removed again when that happens.
    """
    merged = dict(options or {})
    if backing:
        merged |= {"backing_file": backing, "backing_fmt": backing_format}
    known = find_format(format)
    existed = os.path.exists(path)
    storage = FileStorage(path, writable=True, create=True)
    try:
        lock(storage.fileno() or 0, WRITER, path=path)
        storage.truncate(0)
        known.create(storage, size, merged)
        storage.flush()
    except BaseException as error:
        if isinstance(error, ImageError):
            error.path = error.path or path
        if not existed:
            os.unlink(path)
        raise
    finally:
        storage.close()
