"""Drives of the host whose medium can be taken out: CDs and DVDs, floppies, memory cards.

A CD drive tells what is in it to whoever opened it without waiting for a disc (``O_NONBLOCK``).
Opened as other devices are it must have a disc; the kernel then locks its door until the last of
its openers is gone, by whatever end. So nobody takes a disc out in the middle of a copy, and a
process that is killed leaves no locked door behind.

The numbers are those of <linux/cdrom.h>.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time

import msgspec

from wirt.errors import NoMedium, UnsupportedImage

_DRIVE_STATUS = 0x5326
_DISC_STATUS = 0x5327
_CURRENT_SLOT = 0x7FFFFFFF
_FLOPPY_MAJOR = 2

_NO_DISC, _TRAY_OPEN, _NOT_READY = 1, 2, 3
_DISCS = {
    100: "audio", 101: "data", 102: "data", 103: "data", 104: "data", 105: "audio and data",
}  # fmt: skip
_READY_SECONDS = 30.0
"""How long a disc that was just put in may take to turn."""
_POLL_SECONDS = 0.1


class CdState(msgspec.Struct, frozen=True):
    """What a CD drive says of itself; words that it does not know are empty."""

    tray: str
    """``open`` or ``closed``."""
    disc: str
    """``none``, ``data``, ``audio``, ``audio and data``."""


def cd_state(fd: int) -> CdState | None:
    """Return the state of a CD drive, opened in whatever way; None if it is none."""
    status = _status(fd)
    if status is None:
        return None
    if status == _TRAY_OPEN:
        return CdState("open", "none")
    if status == _NO_DISC:
        return CdState("closed", "none")
    return CdState("closed", _DISCS.get(_ask(fd, _DISC_STATUS, 0) or 0, ""))


def is_cd_drive(fd: int) -> bool:
    """True for a CD or DVD drive, whatever is in it."""
    return _ask(fd, _DRIVE_STATUS, _CURRENT_SLOT) is not None


def names_cd_drive(path: str) -> bool:
    """True if ``path`` is one, as far as this user may know."""
    if not is_block_device(path):
        return False
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return is_cd_drive(fd)
    finally:
        os.close(fd)


def _status(fd: int) -> int | None:
    """Return the status when the drive is ready for a disc; None if it is no CD drive."""
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        status = _ask(fd, _DRIVE_STATUS, _CURRENT_SLOT)
        if status != _NOT_READY or time.monotonic() > deadline:
            return status
        time.sleep(_POLL_SECONDS)


def _ask(fd: int, request: int, argument: int) -> int | None:
    try:
        return fcntl.ioctl(fd, request, argument)
    except OSError:
        return None


def is_floppy(fd: int) -> bool:
    """True for a drive of the kernel's floppy driver."""
    info = os.fstat(fd)
    return stat.S_ISBLK(info.st_mode) and os.major(info.st_rdev) == _FLOPPY_MAJOR


def open_device(path: str, flags: int) -> int:
    """Open a block device that has its medium, and keep that in it as long as it is open.

    The tray of a CD drive is left as it is. Raises NoMedium, UnsupportedImage for a disc that
    has no data, OSError.
    """
    links = flags & os.O_NOFOLLOW
    looking = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | links)
    try:
        if not stat.S_ISBLK(os.fstat(looking).st_mode):
            flags |= os.O_NONBLOCK  # another file took the name: no pipe must keep us waiting
        _require_disc(looking, path)
        return os.open(f"/proc/self/fd/{looking}", flags ^ links | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EMEDIUMTYPE:
            raise _without_data(path) from error
        if error.errno == errno.ENOMEDIUM or (error.errno == errno.ENXIO and is_floppy(looking)):
            raise NoMedium(
                "there is no medium in the drive", path=path, hint="insert it"
            ) from error
        raise
    finally:
        os.close(looking)


def _require_disc(fd: int, path: str) -> None:
    status = _status(fd)
    if status == _TRAY_OPEN:
        raise NoMedium(
            "the tray of the drive is open",
            path=path,
            hint=f"put a disc in and close it: wirt img eject --close {path}",
            tray="open",
        )
    if status == _NO_DISC:
        raise NoMedium(
            "there is no disc in the drive",
            path=path,
            hint=f"open it and put one in: wirt img eject {path}",
            tray="closed",
        )
    if status == _NOT_READY:
        raise NoMedium(
            f"the drive was not ready within {_READY_SECONDS:.0f} seconds",
            path=path,
            hint="a disc that cannot be read? take it out and clean it",
            tray="closed",
        )


def _without_data(path: str) -> UnsupportedImage:
    return UnsupportedImage(
        "the disc in the drive has no data: it is blank, or an audio disc",
        path=path,
        hint="a program for audio discs can copy the latter: cdparanoia",
    )


def is_block_device(path: str) -> bool:
    """False also for what is not there: opening it says what is wrong."""
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False
