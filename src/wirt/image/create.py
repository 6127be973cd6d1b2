"""Making empty images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress

from wirt.errors import ImageError, UsageError
from wirt.image.base import Format, OpenOptions
from wirt.image.formats.qcow2.format import FORMAT as QCOW2
from wirt.image.locks import WRITER, lock
from wirt.image.registry import find_format
from wirt.image.storage.file import FileStorage
from wirt.image.storage.schemes import find_scheme


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
    Raises ImageError; new files are removed again when that happens.
    """
    if find_scheme(path) is not None:
        raise UsageError(
            f"nothing can be made at {path}: a server serves what it has",
            hint="write into what is there: --into",
        )
    merged = dict(options or {})
    if backing:
        merged |= {"backing_file": backing, "backing_fmt": backing_format}
    known = find_format(format)
    names = [path, *known.companions(path, size, merged)]
    new = [name for name in names if not os.path.exists(name)]
    try:
        _create(path, known, size, merged)
    except BaseException as error:
        if isinstance(error, ImageError):
            error.path = error.path or path
        remove_files(new)
        raise


def remove_files(names: Sequence[str]) -> None:
    """Remove what was begun; what does not exist was never made."""
    for name in names:
        with suppress(FileNotFoundError):
            os.unlink(name)


def _create(path: str, known: Format, size: int, options: Mapping[str, str]) -> None:
    with FileStorage(path, writable=True, create=True) as storage:
        lock(storage.fileno() or 0, WRITER, path=path)
        storage.truncate(0)
        known.create(storage, size, options)
        storage.flush()
        if known is QCOW2 and "data_file" in options:
            _make_data_file(storage, size, options)


def _make_data_file(storage: FileStorage, size: int, options: Mapping[str, str]) -> None:
    """Make the external data file of a new image; a raw one is mapped one to one."""
    mode = options.get("preallocation", "off")
    with QCOW2.open(storage, OpenOptions(writable=True, with_backing=False)) as image:
        [path] = QCOW2.companions(storage.name, size, options)
        data = FileStorage(path, writable=True, create=True)
        try:
            lock(data.fileno() or 0, WRITER, path=path)
        except BaseException:
            data.close()
            raise
        image.attach_data_file(data)
        data.truncate(0)
        data.truncate(image.virtual_size)
        if image.header.raw_data_file:
            mode = "metadata" if mode == "off" else mode
        if mode != "off":
            image.preallocate(mode)
