"""QEMU's image locks: who uses an image, and for what.

The protocol of ``block/file-posix.c`` since QEMU 2.10. A file has one byte for each
permission *i* (0 consistent read, 1 write, 2 write unchanged, 3 resize): a shared OFD lock
on byte 100+i says "I use i", on byte 200+i "I do not share i". Nobody ever holds an
exclusive lock; a conflict is found by asking whether somebody else holds the opposite byte.
Locks are taken first and tested second: of two racers both may fail, never both succeed.
They die with the descriptor.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

import msgspec

from wirt.errors import ImageInUse

READ, WRITE, WRITE_UNCHANGED, RESIZE = 1, 2, 4, 8
ALL = 15

_NAMES = ("consistent read", "write", "write unchanged", "resize")
_USED, _UNSHARED = 100, 200
_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux; l_pid must be 0


class Claim(msgspec.Struct, frozen=True):
    """What an opener does with a file, and what it lets others do meanwhile."""

    uses: int
    shares: int


READER = Claim(READ, READ | WRITE_UNCHANGED)
FORCED_READER = Claim(READ, ALL)
WRITER = Claim(READ | WRITE | RESIZE, READ | WRITE_UNCHANGED)


def lock(fd: int, claim: Claim, *, path: str) -> None:
    """Hold ``claim`` on the file until ``fd`` is closed. Raises ImageInUse."""
    taken: list[int] = []
    try:
        for bit in range(len(_NAMES)):
            if claim.uses >> bit & 1:
                _take(fd, _USED + bit, taken)
            if not claim.shares >> bit & 1:
                _take(fd, _UNSHARED + bit, taken)
        _test(fd, claim, path)
    except OSError as error:
        _release(fd, taken)
        if error.errno in {errno.EINVAL, errno.ENOLCK, errno.ENOTSUP}:
            return  # the file system has no locks; QEMU goes on without them too
        raise ImageInUse(f"cannot lock: {error.strerror}", path=path) from error
    except BaseException:
        _release(fd, taken)
        raise


def _take(fd: int, byte: int, taken: list[int]) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _request(fcntl.F_RDLCK, byte))
    taken.append(byte)


def _release(fd: int, taken: list[int]) -> None:
    for byte in taken:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _request(fcntl.F_UNLCK, byte))


def is_written(fd: int) -> bool:
    """Return whether somebody else has the file open for writing."""
    try:
        return _held(fd, _USED + WRITE.bit_length() - 1)
    except OSError:
        return False  # a file system without locks


def _test(fd: int, claim: Claim, path: str) -> None:
    for bit, name in enumerate(_NAMES):
        if claim.uses >> bit & 1 and _held(fd, _UNSHARED + bit):
            raise _in_use(f'Failed to get "{name}" lock', path)
        if not claim.shares >> bit & 1 and _held(fd, _USED + bit):
            raise _in_use(f'Failed to get shared "{name}" lock', path)


def _held(fd: int, byte: int) -> bool:
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _request(fcntl.F_WRLCK, byte))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def _request(kind: int, byte: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)


def _in_use(message: str, path: str) -> ImageInUse:
    return ImageInUse(
        message,
        path=path,
        hint=f"Is another process using the image [{path}]? A machine that runs has it: wirt ls "
        "(readers can insist with --force-share; NFSv3 keeps locks of hosts that died)",
    )
