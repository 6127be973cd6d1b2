"""Copy-on-write overlays alone: what a fork needs of the image engine, and no other format."""

from __future__ import annotations

import os
from contextlib import suppress

from wirt.errors import ImageError
from wirt.image.formats.qcow2.create import CreateOptions, new_header, write_empty
from wirt.image.locks import WRITER, lock
from wirt.image.storage.file import FileStorage


def create_overlay(
    path: str, size: int, *, backing: str, backing_format: str, durable: bool = True
) -> None:
    """Make an empty qcow2 image of ``size`` guest bytes over ``backing``.

    Not ``durable``: it need not survive a power cut. Raises ImageError.
    """
    try:
        with FileStorage(path, writable=True, create=True, durable=durable) as storage:
            lock(storage.fileno() or 0, WRITER, path=path)
            storage.truncate(0)
            options = CreateOptions.parse({"backing_file": backing, "backing_fmt": backing_format})
            write_empty(storage, new_header(size, options))
            storage.flush()
    except BaseException as error:
        if isinstance(error, ImageError):
            error.path = error.path or path
        with suppress(FileNotFoundError):
            os.unlink(path)
        raise
