"""A regular file or a host device as positional bytes."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Iterator
from functools import cache

from wirt.errors import (
    ImageAccessDenied,
    ImageError,
    ImageInUse,
    ImageIoError,
    ImageNoSpace,
    NotThisFormat,
)
from wirt.image.base import Storage
from wirt.image.storage.drive import is_block_device, open_device

_PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE of <linux/falloc.h>
_OFFSET_MAX = (1 << 63) - 1
_BLKZEROOUT = 0x127F  # of <linux/fs.h>
_SYNC_FILE_RANGE_WRITE = 2  # of <linux/fs.h>
_RANGE = struct.Struct("=QQ")


@cache
def _fallocate() -> Callable[[int, int, int, int], int]:
    """Return the system call, which Python has without the mode that makes holes."""
    import ctypes  # two milliseconds, which a fork need not wait for

    call = ctypes.CDLL(None, use_errno=True).fallocate
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]
    return call


@cache
def _sync_file_range() -> Callable[[int, int, int, int], int]:
    """Return the system call, which Python has not."""
    import ctypes

    call = ctypes.CDLL(None).sync_file_range
    call.argtypes = [ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong, ctypes.c_uint]
    return call


class FileStorage(Storage):
    """``path`` opened by name; the descriptor lives until ``close``.

    A file that nobody needs after a power cut is not ``durable``: flushing it does nothing.
    """

    def __init__(
        self,
        path: str,
        *,
        writable: bool = False,
        create: bool = False,
        exclusive: bool = False,
        follow_link: bool = True,
        durable: bool = True,
    ) -> None:
        self.name = path
        self._durable = durable
        self.read_only = not writable
        flags = os.O_CLOEXEC | (os.O_RDWR if writable else os.O_RDONLY)
        if create:
            flags |= os.O_CREAT
        if exclusive:
            flags |= os.O_EXCL
        if not follow_link:
            flags |= os.O_NOFOLLOW
        try:
            if is_block_device(path):
                # Nobody else may have claimed it: a mounted file system would be destroyed.
                flags = flags & ~os.O_CREAT | (os.O_EXCL if writable else 0)
                self._fd = open_device(path, flags)
            else:
                # Opening a pipe without a writer would wait for one.
                self._fd = os.open(path, flags | os.O_NONBLOCK, 0o644)
        except OSError as error:
            raise image_error(error, path) from error
        try:
            self._refuse_strange_files()
        except BaseException:
            os.close(self._fd)
            raise

    def _refuse_strange_files(self) -> None:
        mode = os.fstat(self._fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            kind = "a directory" if stat.S_ISDIR(mode) else "no file or block device"
            raise NotThisFormat(f"this is {kind}", path=self.name)

    def size(self) -> int:
        try:
            info = os.fstat(self._fd)
            if stat.S_ISBLK(info.st_mode):
                return os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            raise image_error(error, self.name) from error
        return info.st_size

    def pread(self, offset: int, length: int) -> bytes:
        _check(offset, length)
        try:
            data = os.pread(self._fd, length, offset)
            if len(data) in {0, length}:
                return data
            return data + self._rest(offset + len(data), length - len(data))
        except OSError as error:
            raise image_error(error, self.name, offset) from error

    def pread_into(self, offset: int, buffer: memoryview) -> None:
        _check(offset, len(buffer))
        try:
            done = os.preadv(self._fd, [buffer], offset)
        except OSError as error:
            raise image_error(error, self.name, offset) from error
        if done < len(buffer):
            super().pread_into(offset + done, buffer[done:])

    def _rest(self, offset: int, length: int) -> bytes:
        parts = []
        while length > 0:
            data = os.pread(self._fd, length, offset)
            if not data:
                break
            parts.append(data)
            offset += len(data)
            length -= len(data)
        return b"".join(parts)

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        _check(offset, len(view))
        try:
            while view:
                done = os.pwrite(self._fd, view, offset)
                offset += done
                view = view[done:]
        except OSError as error:
            raise image_error(error, self.name, offset) from error

    def truncate(self, size: int) -> None:
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise image_error(error, self.name) from error

    def begin_flush(self) -> None:
        if self._durable:  # what fails here fails again in ``flush``
            _sync_file_range()(self._fd, 0, 0, _SYNC_FILE_RANGE_WRITE)

    def flush(self) -> None:
        if not self._durable:
            return
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise image_error(error, self.name) from error

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def fileno(self) -> int | None:
        return self._fd

    def allocated_size(self) -> int:
        """Return the bytes that the file occupies on its file system."""
        return os.fstat(self._fd).st_blocks * 512

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        end = min(offset + length, self.size())
        while offset < end:
            data, hole = self._next_data(offset, end)
            if data > offset:
                yield offset, data - offset, False
            if hole > data:
                yield data, hole - data, True
            offset = hole

    def _next_data(self, offset: int, end: int) -> tuple[int, int]:
        """Return where data begins and ends, both clipped to ``end``."""
        try:
            data = min(os.lseek(self._fd, offset, os.SEEK_DATA), end)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return end, end
            return offset, end  # the file system does not tell: all is data
        if data == end:
            return end, end
        return data, min(os.lseek(self._fd, data, os.SEEK_HOLE), end)

    def punch_hole(self, offset: int, length: int) -> bool:
        done = _fallocate()(self._fd, _PUNCH_HOLE, offset, length)
        return bool(done == 0) or self._zero_sectors(offset, length)

    def reserve(self, offset: int, length: int) -> bool:
        try:
            os.posix_fallocate(self._fd, offset, length)
        except OSError as error:
            raise image_error(error, self.name, offset) from error
        return True

    def _zero_sectors(self, offset: int, length: int) -> bool:
        """Let a device write zeros by itself; False for a file, or for parts of sectors."""
        if not stat.S_ISBLK(os.fstat(self._fd).st_mode):
            return False
        try:
            fcntl.ioctl(self._fd, _BLKZEROOUT, _RANGE.pack(offset, length))
        except OSError:
            return False
        return True


def _check(offset: int, length: int) -> None:
    if offset < 0 or length < 0 or offset + length > _OFFSET_MAX:
        raise ImageIoError(f"no file has {length} bytes at {offset:#x}")


def image_error(error: OSError, path: str, offset: int | None = None) -> ImageError:
    """Say in wirt's words what the operating system refused."""
    words = error.strerror or str(error)
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return ImageNoSpace(words, path=path, offset=offset, hint="free space, then try again")
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return ImageAccessDenied(words, path=path, hint="check its owner and mode")
    if error.errno == errno.EBUSY:
        return ImageInUse(
            "the device is in use: mounted, part of a RAID or volume group, or swap",
            path=path,
            hint="see who has it: lsblk, and findmnt",
        )
    return ImageIoError(words, path=path, offset=offset)
