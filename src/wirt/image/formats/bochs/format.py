"""What the registry knows of bochs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress

from wirt.errors import (
    CorruptImage,
    ImageAccessDenied,
    ImageError,
    ImageIoError,
    NotThisFormat,
    UsageError,
)
from wirt.image.base import Format, Image, OpenOptions, Related, Storage
from wirt.image.formats.bochs.redolog import (
    REDOLOG,
    SIGNATURE,
    RedologImage,
    UndoableImage,
    create_redolog,
    file_time,
    same_time,
)
from wirt.image.formats.bochs.sparse import SPARSE, SparseImage, create_sparse
from wirt.image.formats.mapped import refuse_unknown
from wirt.image.storage.file import FileStorage


class BochsFormat(Format):
    name = "bochs"
    suffixes = (".bochs", REDOLOG)
    images = (RedologImage, UndoableImage, SparseImage)
    has_backing = True

    def probe(self, storage: Storage) -> bool:
        return storage.pread(0, 22) == SIGNATURE or is_sparse(storage)

    def open(self, storage: Storage, options: OpenOptions) -> Image:
        if is_sparse(storage):
            return _open_sparse(storage, options)
        head = storage.pread(0, 64)
        if head[:22] != SIGNATURE:
            raise NotThisFormat("there is no Bochs signature")
        if head[48:64].rstrip(b"\0") not in {b"Undoable", b"Volatile"}:
            return RedologImage(storage, options)
        image = UndoableImage(storage, options)
        if options.with_backing:
            image.backing = _open_base(image, options)
        elif image.base_name and options.related is not None:
            with suppress(ImageError):
                image.base_format = _base_format(image, options.related)
        return image

    def create(self, storage: Storage, size: int, options: Mapping[str, str]) -> None:
        """Options: ``subformat`` (growing, sparse, undoable), ``backing_file`` (undoable: the
        base disk, of which the new file must bear the name and ``.redolog``).
        """
        refuse_unknown(options, "subformat", "backing_file", "backing_fmt")
        base = options.get("backing_file", "")
        kind = options.get("subformat", "undoable" if base else "growing")
        if kind not in {"growing", "sparse", "undoable"} or bool(base) != (kind == "undoable"):
            raise UsageError(
                f"Invalid parameter '{kind}'",
                hint="subformat: growing, sparse, or undoable over a backing file",
            )
        if kind == "growing":
            create_redolog(storage, size, "Growing", 0)
        elif kind == "sparse":
            create_sparse(storage, size)
        else:
            _create_undoable(storage, size, base)


def is_sparse(storage: Storage) -> bool:
    head = storage.pread(0, 8)
    return head in {SPARSE + b"\1\0\0\0", SPARSE + b"\2\0\0\0"}


def _open_sparse(storage: Storage, options: OpenOptions) -> Image:
    image = SparseImage(storage, options)
    related = options.related if options.with_backing else None
    if image.parent_name and related is not None and _exists(related, image.parent_name):
        image.backing = related.image([image.parent_name], format="bochs")
    return image


def _exists(related: Related, name: str) -> bool:
    try:
        related.storage(name, role="parent").close()
    except ImageIoError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return False
        raise
    return True


def _open_base(image: UndoableImage, options: OpenOptions) -> Image:
    """Open the base disk and check that it is the one the redolog was made for."""
    if not image.base_name:
        raise CorruptImage(
            "the name of the redolog does not tell its base disk",
            hint="the base disk's name with .redolog behind it",
        )
    if options.related is None:
        raise ImageAccessDenied("the image needs its base disk")
    image.base_format = _base_format(image, options.related)
    base = options.related.image([image.base_name], format=image.base_format)
    try:
        _refuse_other_base(image, base)
    except BaseException:
        base.close()
        raise
    return base


def _base_format(image: UndoableImage, related: Related) -> str:
    """A flat disk was in a guest's hands: only Bochs's own signatures count."""
    with related.storage(image.base_name, role="parent") as file:
        return "bochs" if FORMAT.probe(file) else "raw"


def _refuse_other_base(image: UndoableImage, base: Image) -> None:
    if base.virtual_size != image.virtual_size:
        raise CorruptImage(
            f"the base disk has {base.virtual_size} bytes, its redolog {image.virtual_size}"
        )
    found = file_time(base.storage)
    if image.time and found and not same_time(image.time, found):
        raise CorruptImage("the base disk was changed after its redolog was made")


def _create_undoable(storage: Storage, size: int, base: str) -> None:
    path = os.path.join(os.path.dirname(storage.name), base)
    if os.path.basename(storage.name) != os.path.basename(base) + REDOLOG or os.path.dirname(base):
        raise UsageError(
            "Bochs finds a redolog by its name", hint=f"call it {os.path.basename(base)}{REDOLOG}"
        )
    with FileStorage(path) as file:
        if FORMAT.probe(file):
            known = FORMAT.open(file, OpenOptions(with_backing=False)).virtual_size
        else:
            known = file.size()
        if size not in {0, known}:
            raise UsageError(f"the base disk has {known} bytes: the redolog must be as large")
        create_redolog(storage, known, "Undoable", file_time(file))


FORMAT = BochsFormat()
