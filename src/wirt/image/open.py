"""The door to images: locks, format, and the chain of files behind the named one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from wirt.errors import (
    CorruptImage,
    ImageAccessDenied,
    ImageError,
    OutOfBounds,
    UnsupportedImage,
)
from wirt.image.base import Budget, Deny, Image, OpenGate, OpenOptions, Related, Storage
from wirt.image.formats.qcow2.image import Qcow2Image
from wirt.image.locks import FORCED_READER, READER, WRITER, lock
from wirt.image.probe import image_file, probe_storage
from wirt.image.registry import find_format, named_format
from wirt.image.storage.drive import is_cd_drive
from wirt.image.storage.file import FileStorage, image_error
from wirt.image.storage.schemes import find_scheme


class _Chain(msgspec.Struct):
    """What has been opened so far, for limits and loops."""

    options: OpenOptions
    force_share: bool
    with_data_file: bool = True
    files: list[tuple[int, int]] = msgspec.field(default_factory=list)
    length: int = 0


def open_image(
    path: str,
    *,
    format: str | None = None,  # noqa: A002 - the word of qemu-img and of the field
    writable: bool = False,
    gate: OpenGate | None = None,
    budget: Budget | None = None,
    secret: bytes | None = None,
    force_share: bool = False,
    with_backing: bool = True,
    with_data_file: bool = True,
    allow_dirty: bool = False,
    storage: Storage | None = None,
) -> Image:
    """Open an image and, as far as ``gate`` allows, the files that it names.

    ``path`` is a file, a block device or a name of ``wirt.image.storage.schemes``. Without
    ``format`` the bytes decide (see ``wirt.image.probe``). Every file is locked as QEMU locks
    it, until the image is closed; ``force_share`` lets a reader look at an image in use.
    ``storage`` holds the bytes where they are no plain file at ``path``; it belongs to the
    image from then on, also when opening fails. Raises ImageError with path and offset.
    """
    options = OpenOptions(
        writable=writable,
        gate=gate or Deny(),
        budget=budget or Budget(),
        with_backing=with_backing,
        secret=secret,
        allow_dirty=allow_dirty,
    )
    named = named_format(path) if storage is None else None
    if named is not None:
        return named.open_name(path, options)
    chain = _Chain(options, force_share, with_data_file)
    if storage is None:
        path = image_file(path)
        storage = open_storage(path, writable=writable, force_share=force_share)
    return _open_in(storage, path, format, chain, depth=0)


def _open(path: str, format_name: str | None, chain: _Chain, *, depth: int) -> Image:
    writable = chain.options.writable and depth == 0
    path = image_file(path)
    storage = open_storage(path, writable=writable, force_share=chain.force_share)
    return _open_in(storage, path, format_name, chain, depth=depth)


def _open_in(
    storage: Storage, path: str, format_name: str | None, chain: _Chain, *, depth: int
) -> Image:
    options = chain.options if depth == 0 else replace(chain.options, writable=False)
    try:
        _refuse_loop(storage, chain)
        name = format_name or _probe(storage)
        related = _Beside(path, chain, depth)
        image = find_format(name).open(storage, replace(options, related=related))
    except ImageError as error:
        storage.close()
        error.path = error.path or path
        raise
    except BaseException:
        storage.close()
        raise
    try:
        _open_related(image, path, chain, depth)
    except BaseException:
        image.close()
        raise
    return image


def _probe(storage: Storage) -> str:
    """Return the format of the bytes; for a disc that is no image, that of its drive."""
    name, fd = probe_storage(storage), storage.fileno()
    in_drive = name == "raw" and fd is not None and is_cd_drive(fd)
    return "host_cdrom" if in_drive else name


class _Beside(Related):
    """The files beside one image of the chain."""

    def __init__(self, referrer: str, chain: _Chain, depth: int) -> None:
        self._referrer = referrer
        self._chain = chain
        self._depth = depth

    def storage(self, name: str, *, role: str) -> Storage:
        path = _allowed(name, role, self._referrer, self._chain)
        writable = self._chain.options.writable and self._depth == 0
        return open_storage(path, writable=writable, force_share=self._chain.force_share)

    def folder(self, name: str, *, role: str, most: int) -> Mapping[str, int]:
        if find_scheme(self._referrer) is not None:
            raise UnsupportedImage("a directory on a server cannot be listed", path=self._referrer)
        path = os.path.join(os.path.dirname(self._referrer), name)
        sizes: dict[str, int] = {}
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if len(sizes) >= most:
                        raise OutOfBounds(f"there are more than {most} files", path=path)
                    sizes[entry.name] = entry.stat().st_size
        except OSError as error:
            raise image_error(error, path) from error
        # Each file is asked for when it is opened; without the first one, none would be.
        for first in list(sizes)[:1]:
            _allowed(os.path.join(name, first), role, self._referrer, self._chain)
        return sizes

    def image(self, names: Sequence[str], *, format: str = "") -> Image:  # noqa: A002 - see open_image
        if not names:
            raise CorruptImage("the image does not name its parent", path=self._referrer)
        paths = [_allowed(name, "parent", self._referrer, self._chain) for name in names]
        path = next((path for path in paths if _may_exist(path)), paths[0])
        return _open(path, format or None, self._chain, depth=self._depth + 1)


def _may_exist(path: str) -> bool:
    return find_scheme(path) is not None or os.path.exists(path)


def open_storage(name: str, *, writable: bool, force_share: bool = False) -> Storage:
    """Open a name that the user gave or a gate allowed; files are locked.

    Raises ImageError, and UsageError for a name that its scheme cannot read.
    """
    scheme = find_scheme(name)
    if scheme is None:
        return open_file(name, writable=writable, force_share=force_share)
    return scheme.open(name, writable)


def open_file(path: str, *, writable: bool, force_share: bool = False) -> FileStorage:
    """Open and lock one file. Raises ImageError."""
    storage = FileStorage(path, writable=writable)
    claim = WRITER if writable else FORCED_READER if force_share else READER
    try:
        lock(storage.fileno() or 0, claim, path=path)
    except BaseException:
        storage.close()
        raise
    return storage


def _refuse_loop(storage: Storage, chain: _Chain) -> None:
    descriptor = storage.fileno()
    if descriptor is not None:
        info = os.fstat(descriptor)
        identity = (info.st_dev, info.st_ino)
        if identity in chain.files:
            raise CorruptImage("the backing chain comes back to this file", path=storage.name)
        chain.files.append(identity)
    chain.length += 1
    if chain.length > chain.options.budget.chain_depth:
        raise OutOfBounds(f"the backing chain is longer than {chain.options.budget.chain_depth}")


def _open_related(image: Image, path: str, chain: _Chain, depth: int) -> None:
    if not isinstance(image, Qcow2Image):
        return
    wanted = chain.with_data_file or depth > 0
    if wanted and image.needs_data_file and image.data_file_name:
        name = _allowed(image.data_file_name, "data-file", path, chain)
        writable = chain.options.writable and depth == 0
        image.attach_data_file(open_storage(name, writable=writable, force_share=chain.force_share))
    if image.backing_name and chain.options.with_backing:
        name = _allowed(image.backing_name, "backing", path, chain)
        image.backing = _open(name, image.backing_format, chain, depth=depth + 1)


def _allowed(name: str, role: str, referrer: str, chain: _Chain) -> str:
    """Return the path that ``name`` means beside ``referrer``. Raises ImageAccessDenied."""
    path = os.path.join(os.path.dirname(referrer), name.removeprefix("file:"))
    if not chain.options.gate.allows(name, role=role, referrer=referrer):
        raise ImageAccessDenied(
            f"the image names a {role.removesuffix('-file')} file, "
            f"which is not opened unasked: {name[:200]!r}",
            path=referrer,
            hint=f"if you trust the image: wirt img … --allow {path}",
        )
    if find_scheme(name) is not None:
        return name
    if find_scheme(referrer) is not None:
        raise ImageAccessDenied(
            f"an image from a server names a local {role} file: {name[:200]!r}",
            path=referrer,
            hint="copy the image and that file here first, then open the copy",
        )
    return path
