"""Names that are no files: which storage stands behind ``SCHEME:…``.

Only names that the *user* gives come here unasked. A name inside an image does so only
where the gate allows that very name (``wirt.image.open``). A file whose name begins like a
scheme is written with its directory: ``./nbd:disk``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from wirt.errors import ImageAccessDenied
from wirt.image.base import Storage


class Scheme(NamedTuple):
    """One kind of name and what opens it."""

    prefixes: tuple[str, ...]
    """With the colon, in lower case."""
    open: Callable[[str, bool], Storage]
    """(name, writable) → storage. Raises ImageError, and UsageError for a name it cannot read."""


def _nbd(name: str, writable: bool) -> Storage:
    from wirt.image.storage.nbd import NbdStorage

    return NbdStorage(name, writable=writable)


def _http(name: str, writable: bool) -> Storage:
    from wirt.image.storage.http import HttpStorage

    return _only_read(HttpStorage(name), writable=writable)


def _ftp(name: str, writable: bool) -> Storage:
    from wirt.image.storage.ftp import FtpStorage

    return _only_read(FtpStorage(name), writable=writable)


def _tftp(name: str, writable: bool) -> Storage:
    from wirt.image.storage.tftp import TftpStorage

    return _only_read(TftpStorage(name), writable=writable)


def _only_read(storage: Storage, *, writable: bool) -> Storage:
    if writable:
        storage.close()
        raise ImageAccessDenied(
            "a server of files cannot be written to",
            path=storage.name,
            hint="convert the image into a file, and change that",
        )
    return storage


SCHEMES: tuple[Scheme, ...] = (
    Scheme(("nbd:", "nbds:", "nbd+unix:", "nbds+unix:"), _nbd),
    Scheme(("http:", "https:"), _http),
    Scheme(("ftp:", "ftps:"), _ftp),
    Scheme(("tftp:",), _tftp),
)
"""In order; the first whose prefix fits. Openers import what they need when they are called."""


def find_scheme(name: str) -> Scheme | None:
    """Return the scheme of ``name``, None for the name of a file."""
    head, colon, _ = name.partition(":")
    prefix = head.lower() + colon
    return next((scheme for scheme in SCHEMES if colon and prefix in scheme.prefixes), None)
