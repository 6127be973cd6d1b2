"""Files that are either the old or the new version, whatever is killed or cut off."""

from __future__ import annotations

import errno
import os
import stat

from wirt.errors import HostError, NoSpace, WirtError


def write_file(path: str, data: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replace ``path`` by ``data``: temporary file, fsync, rename, fsync of the directory.

    Not ``durable`` leaves the fsyncs out: for what a power cut ends anyway. Raises NoSpace or
    HostError; the old file then stays.
    """
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        _write(temporary, data, mode, durable=durable)
        os.rename(temporary, path)
        if durable:
            sync_directory(os.path.dirname(path))
    except OSError as error:
        _remove(temporary)
        raise host_error(error, path) from error
    except BaseException:
        _remove(temporary)
        raise


def _write(path: str, data: bytes, mode: int, *, durable: bool) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)


def copy_file(source: str, target: str, *, limit: int, durable: bool = True) -> None:
    """Copy a small file out of a directory that a guest may have taken over.

    No link is followed. Raises HostError for what is no file, or more than ``limit`` bytes.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        with open(os.open(source, flags), "rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode) or info.st_size > limit:
                raise HostError(f"{source} is not the file that it should be")
            data = file.read(limit)
    except OSError as error:
        raise host_error(error, source) from error
    write_file(target, data, durable=durable)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def sync_directory(path: str) -> None:
    """Make renames and new names in ``path`` survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def host_error(error: OSError, path: str) -> WirtError:
    """Say in wirt's words what the operating system refused."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return NoSpace(f"{path}: no space left", hint="free space: wirt images, wirt ls, df -h")
    hint = "check its owner and mode" if error.errno in {errno.EACCES, errno.EPERM} else ""
    return HostError(f"{path}: {error.strerror}", hint=hint)
