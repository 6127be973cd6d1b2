"""Where an image's bytes may lie: a table of protocols, each opened to a storage.

A new protocol is a scheme of the engine, or one more line in ``PROTOCOLS``. Those that do
more than open a local file (``local`` is false) are opened only where the user names them,
never because an image does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from wirt.cli.kvm_img.failure import Failure, failure_of
from wirt.cli.kvm_img.naming import protocol_of
from wirt.errors import ImageAccessDenied, ImageError, ImageInUse, WirtError
from wirt.image.base import Storage
from wirt.image.open import open_file
from wirt.image.storage.drive import is_block_device
from wirt.image.storage.schemes import SCHEMES, find_scheme

_FILE_OPTIONS = frozenset(
    {
        "filename",
        "locking",
        "aio",
        "aio-max-batch",
        "pr-manager",
        "drop-cache",
        "x-check-cache-dropped",
    }
)


class Access(msgspec.Struct, frozen=True):
    """How a storage is opened."""

    writable: bool = False
    force_share: bool = False


class Protocol(msgspec.Struct, frozen=True):
    open: Callable[[Mapping[str, Any], Access], Storage]
    options: frozenset[str]
    local: bool = True


def protocol_name(name: str) -> str:
    """Return the protocol of a file name; plain names mean ``file``. Raises Failure."""
    given = protocol_of(name)
    if not given:
        return "host_device" if is_block_device(name) else "file"
    if given not in PROTOCOLS:
        raise Failure(f"Unknown protocol '{given}'")
    return given


def local_path(name: str) -> str:
    """Return the path of a name of the protocol ``file``, or of a plain one."""
    path = name.removeprefix("file:")
    return f"./{path}" if path != name and protocol_of(path) else path


def _open_file(options: Mapping[str, Any], access: Access) -> Storage:
    name = options.get("filename")
    if not isinstance(name, str):
        raise Failure(
            'A block device must be specified for "file"'
            if name is None
            else "Parameter 'filename' expects a string"
        )
    path = local_path(name)
    try:
        return open_file(path, writable=access.writable, force_share=access.force_share)
    except ImageInUse as error:
        raise failure_of(error) from error
    except ImageAccessDenied as error:
        raise Failure(f"Could not open '{path}': {error.message}") from error
    except ImageError as error:
        raise _unopened(path, error) from error


def _unopened(path: str, error: ImageError) -> Failure:
    if os.path.exists(path) and not os.path.isfile(path) and not is_block_device(path):
        return Failure(f"'file' driver requires '{path}' to be a regular file")
    return Failure(f"Could not open '{path}': {error.message}")


class NullStorage(Storage):
    """``null-co``: a disk of zeros that forgets what is written, for measuring."""

    def __init__(self, size: int) -> None:
        self.name = "null-co://"
        self.read_only = False
        self._size = size

    def size(self) -> int:
        return self._size

    def pread(self, offset: int, length: int) -> bytes:
        return bytes(max(0, min(length, self._size - offset)))

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        return

    def truncate(self, size: int) -> None:
        self._size = size

    def flush(self) -> None:
        return

    def close(self) -> None:
        return


def _open_null(options: Mapping[str, Any], _access: Access) -> Storage:
    size = options.get("size", 1 << 30)
    try:
        return NullStorage(int(size))
    except (TypeError, ValueError):
        raise Failure("Parameter 'size' expects a number") from None


def _open_scheme(options: Mapping[str, Any], access: Access) -> Storage:
    """Open a name of the engine's own schemes (``wirt.image.storage.schemes``)."""
    name = str(options.get("filename") or _nbd_name(options))
    scheme = find_scheme(name)
    if scheme is None:
        raise Failure(f"'{name}' is no name that can be opened")
    try:
        return scheme.open(name, access.writable)
    except WirtError as error:
        raise failure_of(error) from error


def _nbd_name(options: Mapping[str, Any]) -> str:
    """Return the name that the options of QEMU's nbd driver mean."""
    server = {**options, **options["server"]} if "server" in options else options
    export = f":exportname={options['export']}" if "export" in options else ""
    if "path" in server:
        return f"nbd:unix:{server['path']}{export}"
    return f"nbd:{server.get('host', 'localhost')}:{server.get('port', 10809)}{export}"


_NULL = Protocol(_open_null, frozenset({"size", "latency-ns", "read-zeroes"}))
_FILE = Protocol(_open_file, _FILE_OPTIONS)

_REMOTE = Protocol(
    _open_scheme,
    frozenset({"filename", "host", "port", "path", "export", "server", "url"}),
    local=False,
)

PROTOCOLS: dict[str, Protocol] = {
    **{prefix.rstrip(":"): _REMOTE for scheme in SCHEMES for prefix in scheme.prefixes},
    "file": _FILE,
    "host_device": _FILE,
    "null-co": _NULL,
    "null-aio": _NULL,
}
