"""Facts kept in files that may be lost, damaged or deleted at any time: they are found again."""

from __future__ import annotations

import fcntl
import os
from typing import TypeVar

import msgspec

from wirt.typed_json import decode

T = TypeVar("T")

_LARGEST = 4 << 20


def read(path: str, kind: type[T]) -> T | None:
    """Return what was kept, or None if it is absent or damaged."""
    try:
        with open(path, "rb") as file:
            return decode(file.read(_LARGEST), kind)
    except (OSError, msgspec.MsgspecError):
        return None


def write(path: str, value: msgspec.Struct) -> None:
    """Keep ``value``. A reader sees it whole or not at all; failing costs time only.

    There is one temporary name, locked by who writes: a killed writer leaves at most that
    one file, which the next writer takes over.
    """
    temporary = f"{path}.tmp"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError:
        return
    with open(fd, "wb") as file:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(fd), os.stat(temporary)):
                return  # it was another writer's, and is in its place already
            file.truncate()
            file.write(msgspec.json.encode(value))
            file.flush()
            os.rename(temporary, path)
        except OSError:
            return
