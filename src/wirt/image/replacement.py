"""A new file in the place of an old one, at once or not at all.

Whatever is made lies beside the name that was asked for, as ``NAME.partial``, and takes
that name only when it is complete and durable. Killed at any moment, the old file is as it
was; a ``.partial`` left behind is overwritten by the next attempt.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from wirt.errors import ImageInUse
from wirt.image.locks import WRITER, lock
from wirt.image.storage.file import FileStorage, image_error
from wirt.image.storage.schemes import find_scheme

_PARTIAL = ".partial"


def final_name(path: str) -> str:
    """Return the name that a file made under ``path`` will have in the end."""
    return path.removesuffix(_PARTIAL)


@contextmanager
def replacing(path: str, *, keep_partial: bool = False) -> Iterator[str]:
    """Yield the name to make the new file under; at the end it replaces ``path``.

    A file that exists is locked for writing meanwhile, and its mode and owner are passed on.
    On an error the new file is removed, unless ``keep_partial`` (to go on with it later).
    Raises ImageInUse if anybody uses ``path``, or makes the same replacement.
    """
    path = os.path.realpath(path)
    partial = path + _PARTIAL
    with _unused(path), _own(partial) as fd:
        try:
            yield partial
            _take_over(path, partial, fd)
        except BaseException:
            if not keep_partial:
                os.unlink(partial)
            raise


@contextmanager
def _unused(path: str) -> Iterator[None]:
    """Refuse to go on while somebody uses the file, if there is one."""
    if not os.path.exists(path):
        yield
        return
    with FileStorage(path, writable=True) as storage:
        lock(storage.fileno() or 0, WRITER, path=path)
        yield


@contextmanager
def _own(partial: str) -> Iterator[int]:
    """Hold the new file against others who replace the same one (flock: QEMU's are apart)."""
    while True:
        try:
            fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise image_error(error, partial) from error
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ImageInUse("another process is writing it anew", path=partial) from error
            if _is_still(partial, fd):
                yield fd
                return
        finally:
            os.close(fd)


def _is_still(path: str, fd: int) -> bool:
    """Return whether the name still means the open file: its last owner may have moved it."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False


def _take_over(path: str, partial: str, fd: int) -> None:
    try:
        if os.path.exists(path):
            old = os.stat(path)
            os.fchmod(fd, stat.S_IMODE(old.st_mode))
            if (old.st_uid, old.st_gid) != (os.getuid(), os.getgid()):
                os.fchown(fd, old.st_uid, old.st_gid)
        os.fsync(fd)
        os.rename(partial, path)
        sync_directory(os.path.dirname(path))
    except OSError as error:
        raise image_error(error, path) from error


def sync_directory(path: str) -> None:
    """Return when the names in the directory are durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def is_replaceable(path: str) -> bool:
    """Return whether ``path`` is a regular file, or nothing yet: a device is written in place."""
    if find_scheme(path) is not None:
        return False
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        return True
    except OSError as error:
        raise image_error(error, path) from error
