"""Longer and shorter VMDKs: the last extent changes, files come and go behind it.

Extents may be longer than the descriptor says, so they grow before it does and shrink after.
"""

from __future__ import annotations

import os
from contextlib import suppress

from msgspec.structs import replace

from wirt.errors import UnsupportedImage
from wirt.image.base import Budget
from wirt.image.formats.mapped import SECTOR
from wirt.image.formats.vmdk.create import SPLIT, split_name, write_sparse
from wirt.image.formats.vmdk.image import Part, VmdkImage
from wirt.image.formats.vmdk.sparse import SparseExtent, SparseHeader
from wirt.image.locks import WRITER, lock
from wirt.image.storage.file import FileStorage


def grow(image: VmdkImage, size: int) -> SparseHeader | None:
    """Make the parts ``size`` bytes long; return the header to write for an embedded extent."""
    last = image.parts[-1]
    split = image.descriptor.create_type.startswith("twoGbMaxExtent")
    limit = max(SPLIT, last.length) if split else size
    header = _lengthen(image, last, min(size - last.start, limit))
    image.virtual_size = last.end
    while image.virtual_size < size:
        part = _new_part(image, min(SPLIT, size - image.virtual_size))
        image.add_part(part)
        image.virtual_size = part.end
    return header


def _lengthen(image: VmdkImage, part: Part, length: int) -> SparseHeader | None:
    header = None
    if part.sparse is not None:
        header = part.sparse.extended(length // SECTOR)
        if part.sparse.storage is not image.storage:
            part.sparse.write_header(header)
            header = None
    elif part.storage is not None:
        end = part.place + part.length
        if part.storage.size() > end:
            part.storage.truncate(end)
        part.storage.truncate(part.place + length)
    elif part.se_sparse is not None:
        raise UnsupportedImage("SESPARSE extents can only be read")
    part.length = length
    return header


def _new_part(image: VmdkImage, length: int) -> Part:
    start = image.virtual_size
    directory = os.path.dirname(image.storage.name)
    flat = image.parts[-1].storage is not None
    name = split_name(image.storage.name, len(image.parts) + 1, flat=flat)
    path = os.path.join(directory, name)
    file = FileStorage(path, writable=True, create=True, exclusive=True)
    try:
        lock(file.fileno() or 0, WRITER, path=path)
        if flat:
            file.truncate(length)
            part = Part(start, length, file)
        else:
            write_sparse(file, length, 0)
            part = Part(start, length, sparse=SparseExtent(file, Budget(), writable=True))
    except BaseException:
        file.close()
        os.unlink(path)
        raise
    image.new_files.append(path)
    return part


def shrink(image: VmdkImage, size: int) -> SparseHeader | None:
    """Take parts away until ``size`` is reached; return the header for an embedded extent."""
    while image.parts[-1].start >= size and len(image.parts) > 1:
        image.remove_last_part()
    last = image.parts[-1]
    last.length = size - last.start
    image.virtual_size = size
    if last.sparse is not None and last.sparse.storage is image.storage:
        return replace(last.sparse.header, capacity=last.length // SECTOR)
    return None


def forget_behind(image: VmdkImage) -> None:
    """The descriptor is shorter: drop what lies behind the end of the last extent, and files."""
    last = image.parts[-1]
    if last.sparse is not None:
        if last.sparse.storage is not image.storage:
            header = replace(last.sparse.header, capacity=last.length // SECTOR)
            last.sparse.write_header(header)
        last.sparse.shorten()
        last.sparse.trim()
    elif last.storage is not None:
        last.storage.truncate(last.place + last.length)
    for file in image.removed_files:
        path = file.name
        file.close()
        with suppress(FileNotFoundError):
            os.unlink(path)
    image.removed_files.clear()
