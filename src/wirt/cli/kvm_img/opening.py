"""Opening what the command line names: one image with its whole backing chain.

As qemu-img, kvm-img trusts an image for the local files that it names (its backing image,
data file and extents); unlike qemu-img it opens nothing else unasked. Errors are worded for
each layer as it is opened, which is why the chain is opened here and not by the engine.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, Self

import msgspec
from msgspec.structs import replace

from wirt.cli.kvm_img.failure import Failure, failure_of
from wirt.cli.kvm_img.known_options import EVERYWHERE, format_options
from wirt.cli.kvm_img.naming import (
    Tree,
    beside,
    json_name,
    parse_image_options,
    parse_json_name,
    protocol_of,
)
from wirt.cli.kvm_img.objects import Secrets
from wirt.cli.kvm_img.protocols import PROTOCOLS, Access, local_path, protocol_name
from wirt.cli.kvm_img.window import ImageStorage, Window
from wirt.errors import UsageError, WirtError
from wirt.image.base import AllowLocalFiles, Budget, Checkable, Image, Storage
from wirt.image.open import open_image
from wirt.image.registry import FORMATS, find_format

_BUDGET = Budget(metadata_bytes=1 << 40, expansion=1 << 40)


class Opening(msgspec.Struct, frozen=True):
    """How a command opens its images."""

    writable: bool = False
    force_share: bool = False
    with_backing: bool = True
    allow_dirty: bool = False
    image_opts: bool = False
    looks_only: bool = False
    """No guest byte will be read, so an encrypted image opens without its passphrase."""
    writes_below: int = 0
    """Number of the layer below the first one that is to be opened for writing too."""
    secrets: Secrets = msgspec.field(default_factory=Secrets)


class Opened(msgspec.Struct):
    """An open image, and how it and the layers below it are called."""

    image: Image
    name: str
    format: str
    path: str
    """Of the file that the format lies in, where there is one."""
    tree: Tree = msgspec.field(default_factory=dict)
    by_user: bool = True
    """The user wrote ``tree``; else an image did."""
    backing: Opened | None = None
    files: list[tuple[int, int]] = msgspec.field(default_factory=list)

    def close(self) -> None:
        self.image.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_named(name: str, format_name: str | None, how: Opening) -> Opened:
    """Open the image that the user names. Raises Failure, as ``Could not open 'NAME': …``."""
    if how.image_opts and format_name is not None:
        raise Failure("--image-opts and --format are mutually exclusive")
    try:
        return open_user_name(name, format_name, how)
    except Failure as failure:
        raise failure.prefixed(f"Could not open '{name}': ") from failure


def open_user_name(name: str, format_name: str | None, how: Opening) -> Opened:
    """Open what the user names; a Failure does not say the name."""
    if how.image_opts:
        return _open(None, parse_image_options(name), how, [], by_user=True)
    tree: Tree = {} if format_name is None else {"driver": format_name}
    return _open(name, tree, how, [], by_user=True)


def _open(
    name: str | None,
    tree: Tree,
    how: Opening,
    files: list[tuple[int, int]],
    *,
    by_user: bool,
) -> Opened:
    if name is not None and name.startswith("json:"):
        tree, name = parse_json_name(name) | tree, None
    driver = tree.get("driver")
    if driver is not None and not isinstance(driver, str):
        raise Failure("Parameter 'driver' expects a string")
    if driver is None and name is None and "file" not in tree and "filename" in tree:
        driver = protocol_name(str(tree["filename"]))
    if driver is not None and driver in PROTOCOLS:
        return _open_protocol(name, {**tree, "driver": driver}, how, by_user=by_user)
    if driver is not None:
        _refuse_unknown_driver(driver)
    return _open_format(name, driver, tree, how, files, by_user=by_user)


def _refuse_unknown_driver(name: str) -> None:
    try:
        find_format(name)
    except UsageError:
        raise Failure(f"Unknown driver '{name}'") from None


def _open_protocol(name: str | None, tree: Tree, how: Opening, *, by_user: bool) -> Opened:
    """A protocol without a format: its bytes are the disk."""
    options = tree if name is None else {**tree, "filename": name}
    storage, path = _storage(options, how, by_user=by_user)
    image = open_image(path or storage.name, format="raw", writable=how.writable, storage=storage)
    return Opened(image, path or storage.name, str(tree["driver"]), path, options)


def _storage(options: Tree, how: Opening, *, by_user: bool) -> tuple[Storage, str]:
    """Open the bytes below a format; returns them with their path, if they are a file."""
    name = options.get("filename")
    driver = options.get("driver")
    if isinstance(name, str) and name.startswith("json:"):
        options = parse_json_name(name)
        name, driver = options.get("filename"), options.get("driver")
    if driver is None:
        if not isinstance(name, str):
            raise Failure('A block device must be specified for "file"')
        driver = protocol_name(name)
    if driver not in PROTOCOLS:
        return _format_as_storage(options, how, by_user=by_user)
    protocol = PROTOCOLS[driver]
    if not protocol.local and not by_user:
        raise Failure(
            f"the image names '{name or driver}', which is only opened if you name it yourself"
        )
    _refuse_unknown(options, protocol.options, f"Block protocol '{driver}' doesn't support the")
    writable = how.writable and not _is_on(options.get("read-only"))
    storage = protocol.open(options, Access(writable, how.force_share))
    return storage, local_path(name) if protocol.local and isinstance(name, str) else ""


def _format_as_storage(options: Tree, how: Opening, *, by_user: bool) -> tuple[Storage, str]:
    inner = _open(None, options, replace(how, with_backing=True), [], by_user=by_user)
    return ImageStorage(inner.image, read_only=not how.writable), ""


def _open_format(
    name: str | None,
    driver: str | None,
    tree: Tree,
    how: Opening,
    files: list[tuple[int, int]],
    *,
    by_user: bool,
) -> Opened:
    below = tree.get("file", {})
    if isinstance(below, str):
        if name is not None or driver is not None:
            raise Failure(f"Cannot find device='' nor node-name='{below}'")
        below = {"filename": below}
    if name is not None:
        below = {**below, "filename": name}
    if _is_on(tree.get("force-share")):
        how = replace(how, force_share=True)
    if _is_on(tree.get("read-only")):
        how = replace(how, writable=False)
    storage, path = _storage(below, how, by_user=by_user)
    try:
        known = driver or _probe(storage)
        if driver is None and known == "raw" and how.writable:
            _warn_of_raw(path or storage.name)
        _refuse_unknown(tree, format_options(known), f"Block format '{known}' does not support the")
        image = _image(storage, path, known, tree, how)
    except BaseException:
        storage.close()
        raise
    opened = Opened(image, "", known, path, tree, by_user)
    opened.name = _shown_name(name, tree, below, path, known)
    try:
        _remember(opened, storage, files)
        _attach_data_file(opened, how)
        if how.with_backing:
            _attach_backing(opened, how)
    except BaseException:
        image.close()
        raise
    return opened


def _probe(storage: Storage) -> str:
    """Return the format as the bytes claim it; of several claims the first, as qemu-img."""
    return next((known.name for known in FORMATS if known.probe(storage)), "raw")


def _warn_of_raw(path: str) -> None:
    """A guest can make a raw disk look like another format, which the next one then opens."""
    sys.stderr.write(
        f"WARNING: Image format was not specified for '{path}' and probing guessed raw.\n"
        "         Automatically detecting the format is dangerous for raw images, write "
        "operations on block 0 will be restricted.\n"
        "         Specify the 'raw' format explicitly to remove the restrictions.\n"
    )


def _image(storage: Storage, path: str, known: str, tree: Tree, how: Opening) -> Image:
    if known == "raw" and ("offset" in tree or "size" in tree):
        storage = Window(storage, tree.get("offset"), tree.get("size"))
    secret = _secret(tree, known, how)
    try:
        image = open_image(
            path or storage.name,
            format=known,
            writable=how.writable,
            gate=AllowLocalFiles(),
            budget=_BUDGET,
            secret=secret,
            force_share=how.force_share,
            with_backing=known in {"vpc", "vhdx"} and how.with_backing,
            allow_dirty=how.allow_dirty or known == "qcow2",
            storage=storage,
            with_data_file="data-file" not in tree,
        )
    except WirtError as error:
        raise failure_of(error) from error
    if secret is None and not how.looks_only and image.info().encrypted:
        image.close()
        option = "key-secret" if known == "luks" else "encrypt.key-secret"
        raise Failure(f"Parameter '{option}' is required for cipher")
    if how.writable and not how.allow_dirty and isinstance(image, Checkable):
        try:
            _make_clean(image)
        except BaseException:
            image.close()
            raise
    return image


def _make_clean(image: Checkable) -> None:
    """Repair an image that was not closed properly; refuse one that is known to be corrupt."""
    info = image.info()
    if info.specific.get("corrupt"):
        raise Failure("qcow2: Image is corrupt; cannot be opened read/write")
    if info.dirty:
        try:
            result = image.check(repair="all")
        except WirtError as error:
            raise failure_of(error).prefixed("Could not repair dirty image: ") from error
        sys.stderr.write("".join(f"{message}\n" for message in result.messages))


def _secret(tree: Tree, known: str, how: Opening) -> bytes | None:
    encrypt = tree if known == "luks" else tree.get("encrypt", {})
    name = encrypt.get("key-secret") if isinstance(encrypt, Mapping) else None
    return None if name is None or how.looks_only else how.secrets[str(name)]


def _shown_name(name: str | None, tree: Tree, below: Tree, path: str, known: str) -> str:
    """Return the name that output shows: a path where that says all, else ``json:…``."""
    if name is not None:
        return local_path(name) if protocol_of(name) == "file" else name
    weighty = set(tree) & {"offset", "size", "backing", "data-file", "encrypt"}
    if path and not weighty:
        return path
    members = {**tree, "driver": known, "file": {"driver": "file", **below}}
    encrypt = members.pop("encrypt", {})
    return json_name(members | {f"encrypt.{key}": value for key, value in encrypt.items()})


def _remember(opened: Opened, storage: Storage, files: list[tuple[int, int]]) -> None:
    """Refuse a chain that comes back to a file that it has already."""
    descriptor = storage.fileno()
    opened.files = files
    if descriptor is None:
        return
    status = os.fstat(descriptor)
    identity = (status.st_dev, status.st_ino)
    if identity in files or len(files) > Budget().chain_depth:
        raise Failure("the backing chain comes back to this file")
    opened.files = [*files, identity]


def _attach_data_file(opened: Opened, how: Opening) -> None:
    options = opened.tree.get("data-file")
    attach = getattr(opened.image, "attach_data_file", None)
    if options is None or attach is None:
        return
    if isinstance(options, str):
        raise Failure(f"Cannot find device='' nor node-name='{options}'")
    attach(_storage(options, how, by_user=opened.by_user)[0])


def _attach_backing(opened: Opened, how: Opening) -> None:
    """Open the layers below, for reading only."""
    below = opened.tree.get("backing", {})
    if below is None or below == "":
        return
    how = replace(
        how,
        writable=how.writes_below == 1,
        writes_below=how.writes_below - 1,
        allow_dirty=False,
        image_opts=False,
    )
    info = opened.image.info()
    try:
        if isinstance(below, str):
            raise Failure(f"Cannot find device='' nor node-name='{below}'")
        if "file" in below or "filename" in below:
            opened.backing = _open(None, dict(below), how, opened.files, by_user=opened.by_user)
        elif info.backing_name:
            tree = dict(below)
            if info.backing_format:
                tree.setdefault("driver", info.backing_format)
            name = full_backing_name(opened, info.backing_name)
            opened.backing = _open(name, tree, how, opened.files, by_user=False)
        else:
            return
    except Failure as failure:
        raise failure.prefixed("Could not open backing file: ") from failure
    opened.image.backing = opened.backing.image


def full_backing_name(opened: Opened, name: str) -> str:
    """Return what the backing name of an image means for us. Raises Failure."""
    if protocol_of(name) or os.path.isabs(name):
        return name
    if not opened.path:
        raise Failure(f"Cannot generate a base directory for {opened.format} nodes")
    return beside(opened.path, name)


def _refuse_unknown(tree: Tree, known: frozenset[str], message: str) -> None:
    unknown = sorted(set(tree) - known - EVERYWHERE)
    if unknown:
        name = unknown[0]
        value: Any = tree[name]
        if isinstance(value, dict) and value:
            name = f"{name}.{next(iter(value))}"
        raise Failure(f"{message} option '{name}'")


def _is_on(value: object) -> bool:
    return value is True or value in {"on", "yes", "true", "y"}


def known_format(name: str) -> str:
    """Return ``name`` if it is a format. Raises Failure."""
    try:
        return find_format(name).name
    except UsageError:
        raise Failure(f"Unknown file format '{name}'") from None
