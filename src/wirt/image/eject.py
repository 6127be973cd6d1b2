"""Opening and closing a drive of the host: the tray of a CD drive, the slot of a card's.

Only a drive that nobody uses moves: the kernel refuses one that is mounted or open, and QEMU's
lock protocol tells of a machine that has it. The numbers are those of <linux/cdrom.h>.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator

from wirt.errors import ImageInUse, NotThisFormat, UnsupportedImage
from wirt.image.locks import WRITER, lock
from wirt.image.storage.drive import CdState, cd_state, is_block_device, is_floppy
from wirt.image.storage.file import image_error

_EJECT = 0x5309
_CLOSE_TRAY = 0x5319
_LOCK_DOOR = 0x5329
_CAPABILITY = 0x5331
_CAN_CLOSE = 1
_UNABLE = {errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}


def eject(path: str) -> CdState | None:
    """Open the tray of a drive, or push its medium out; return how a CD drive is then.

    Raises NotThisFormat, ImageInUse, UnsupportedImage, ImageIoError, ImageAccessDenied.
    """
    with _alone(path) as fd:
        if is_floppy(fd):
            raise UnsupportedImage(
                "a floppy drive has no motor for that", path=path, hint="press its button"
            )
        # A QEMU that was killed leaves the door locked if its guest had locked it.
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, _LOCK_DOOR, 0)
        _move(fd, _EJECT, path, "eject", "open it by hand")
        return cd_state(fd)


def close_tray(path: str) -> CdState | None:
    """Close the tray of a CD drive; return how it is when it has looked at its disc.

    Raises as ``eject``.
    """
    by_hand = "push it in by hand"
    with _alone(path) as fd:
        with contextlib.suppress(OSError):
            if not fcntl.ioctl(fd, _CAPABILITY, 0) & _CAN_CLOSE:
                raise UnsupportedImage("the drive cannot close its tray", path=path, hint=by_hand)
        _move(fd, _CLOSE_TRAY, path, "close its tray", by_hand)
        return cd_state(fd)


@contextlib.contextmanager
def _alone(path: str) -> Iterator[int]:
    """Yield a drive, with or without a medium, that nobody else uses."""
    if not is_block_device(path) and os.path.exists(path):
        raise NotThisFormat("this is no drive", path=path, hint="name its device: /dev/sr0")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        raise image_error(error, path) from error
    try:
        if not stat.S_ISBLK(os.fstat(fd).st_mode):
            raise NotThisFormat("this is no drive", path=path)
        lock(fd, WRITER, path=path)
        yield fd
    finally:
        os.close(fd)


def _move(fd: int, request: int, path: str, what: str, cure: str) -> None:
    try:
        fcntl.ioctl(fd, request, 0)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise ImageInUse(
                "another program has the drive open", path=path, hint=f"see which: fuser -v {path}"
            ) from error
        if error.errno in _UNABLE:
            raise UnsupportedImage(f"the drive cannot {what}", path=path, hint=cure) from error
        raise image_error(error, path) from error
