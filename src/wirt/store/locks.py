"""Locks that die with their holder.

Two kinds, both of the kernel's:

- *command locks* (``flock``): a wirt command holds one while it changes a machine; others
  wait in line.
- *the run lock* (an OFD record lock): taken before QEMU starts, on a descriptor that QEMU
  inherits. The kernel drops it when the last process that holds the descriptor ends, so
  "held" means "running", whatever was killed and whatever a pid file says. It is tested
  with ``F_OFD_GETLK``, which takes nothing, so that two tests do not see each other.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from wirt.errors import Busy, HostError, NotFound

_FLOCK = struct.Struct("hhqqi4x")  # type, whence, start, length, pid: <fcntl.h> on 64-bit Linux


@contextmanager
def command_lock(
    path: str, *, timeout: float, waiting: Callable[[], None] | None = None
) -> Iterator[int]:
    """Hold ``path`` exclusively; ``waiting`` is called once if somebody else has it.

    Raises NotFound if the file goes away (its machine was removed), Busy after ``timeout``
    seconds.
    """
    fd = _acquire(path, time.monotonic() + timeout, waiting)
    try:
        yield fd
    finally:
        os.close(fd)


def _acquire(path: str, deadline: float, waiting: Callable[[], None] | None) -> int:
    told = False
    while True:
        fd = _open(path)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            if waiting and not told:
                waiting()
            told = True
            _pause(path, deadline)
            continue
        except BaseException:
            os.close(fd)
            raise
        if _still_there(path, fd):
            return fd
        os.close(fd)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        name = os.path.basename(os.path.dirname(path))
        raise NotFound(f"there is no machine {name!r}", hint="wirt ls") from None
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}") from error


def _pause(path: str, deadline: float) -> None:
    if time.monotonic() > deadline:
        name = os.path.basename(os.path.dirname(path))
        raise Busy(
            f"another wirt command is still busy with {name!r}",
            hint=f"see who: fuser {path}",
        )
    time.sleep(0.02)


def _still_there(path: str, fd: int) -> bool:
    """The machine may have been removed, or removed and made again, while we waited."""
    try:
        return os.stat(path).st_ino == os.fstat(fd).st_ino
    except FileNotFoundError:
        return False


def try_lock(path: str) -> int | None:
    """Return a descriptor that holds ``path`` now, or None if somebody else does."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def take_run_lock(path: str) -> int:
    """Return a descriptor that holds the run lock, for QEMU to inherit. Raises Busy."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if _is_locked(fd):
            raise Busy(f"{path} is held: the machine is running")
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _request(fcntl.F_RDLCK))
    except BaseException:
        os.close(fd)
        raise
    return fd


def join_run_lock(path: str) -> int:
    """Return a descriptor that holds the run lock beside others: of a second QEMU, a helper."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _request(fcntl.F_RDLCK))
    except BaseException:
        os.close(fd)
        raise
    return fd


def run_lock_is_held(path: str) -> bool:
    """True while a process that inherited the run lock lives."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in {errno.EACCES, errno.ELOOP}:
            raise HostError(f"{path}: {error.strerror}") from error
        raise
    try:
        return _is_locked(fd)
    finally:
        os.close(fd)


def _is_locked(fd: int) -> bool:
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _request(fcntl.F_WRLCK))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def _request(kind: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, 0, 1, 0)
