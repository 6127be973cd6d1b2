"""Bytes from file to file without passing through this process."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from wirt.image.base import Storage
from wirt.image.storage.file import image_error

_FICLONERANGE = 0x4020940D  # of <linux/fs.h>
_CLONE = struct.Struct("=qQQQ")  # descriptor, offset and length there, offset here
_CHUNK = 1 << 20
_NOT_POSSIBLE = {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ETXTBSY}


def shares_blocks(source: Storage, target: Storage) -> bool:
    """Return whether the file system can let both files share blocks (reflinks).

    Asked by sharing what lies behind the end of the source: nothing.
    """
    from_fd, to_fd = source.fileno(), target.fileno()
    if from_fd is None or to_fd is None:
        return False
    try:
        fcntl.ioctl(to_fd, _FICLONERANGE, _CLONE.pack(from_fd, source.size(), 0, 0))
    except OSError:
        return False
    return True


def copy_range(source: Storage, offset: int, target: Storage, place: int, length: int) -> None:
    """Copy; what lies behind the end of ``source`` is zeros. Raises ImageError."""
    from_fd, to_fd = source.fileno(), target.fileno()
    while length:
        done = _kernel_copy(from_fd, to_fd, offset, place, length, target.name)
        if not done:
            done = min(length, _CHUNK)
            target.pwrite(place, source.pread(offset, done).ljust(done, b"\0"))
        offset += done
        place += done
        length -= done


def _kernel_copy(
    from_fd: int | None, to_fd: int | None, offset: int, place: int, length: int, name: str
) -> int:
    """Return how many bytes the kernel copied, 0 if it cannot."""
    if from_fd is None or to_fd is None:
        return 0
    try:
        return os.copy_file_range(from_fd, to_fd, length, offset, place)
    except OSError as error:
        if error.errno in _NOT_POSSIBLE:
            return 0
        raise image_error(error, name, place) from error
