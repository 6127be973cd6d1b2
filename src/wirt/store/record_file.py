"""Records: small JSON files that carry a version and are replaced as a whole."""

from __future__ import annotations

import os
import re
from typing import Protocol, TypeVar

import msgspec

from wirt.errors import HostError
from wirt.store.atomic import host_error, write_file
from wirt.typed_json import decode

VERSION = 1
"""Of every kind of record so far."""
_MAX_BYTES = 4 << 20
_SUFFIX = ".json"


class Versioned(Protocol):
    @property
    def version(self) -> int: ...


R = TypeVar("R", bound=Versioned)


def read_file(path: str, kind: type[R], *, cure: str) -> R | None:
    """Return the record at ``path``; None if there is none.

    ``cure`` is the user's next step if it is damaged. Raises HostError.
    """
    try:
        found = decode(_read(path), kind)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise host_error(error, path) from error
    except msgspec.MsgspecError as error:
        raise HostError(f"{path} is damaged: {error}", hint=cure) from error
    if found.version > VERSION:
        raise HostError(f"{path} is of a newer wirt (version {found.version})", hint="upgrade wirt")
    return found


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return os.read(fd, min(os.fstat(fd).st_size, _MAX_BYTES))
    finally:
        os.close(fd)


def replace_file(path: str, record: Versioned, *, durable: bool = True) -> None:
    """Replace a record; not ``durable``: safe from kills, not yet from power cuts."""
    data = msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"
    write_file(path, data, durable=durable)


def names_in(directory: str, pattern: re.Pattern[str]) -> list[str]:
    """Return the names of the records in a directory, as far as they are some, sorted."""
    try:
        files = os.listdir(directory)
    except FileNotFoundError:
        return []
    names = (file.removesuffix(_SUFFIX) for file in files if file.endswith(_SUFFIX))
    return sorted(name for name in names if pattern.fullmatch(name))
