"""The memory of a state on disk: what stays when the host restarts."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from wirt.store.atomic import host_error, sync_directory
from wirt.store.states import State

_PIECE = 1 << 20
_PAGE = 4096


def keep_memory(state: State) -> int:
    """Copy the memory from RAM to disk, if that was not done; return the bytes written.

    Machines that stand on the file in RAM keep it; machines made from now on use the other.
    Raises NoSpace, HostError; then nothing has changed.
    """
    paths = state.paths
    if state.manifest.in_devices or not os.path.exists(paths.memory):
        return 0
    temporary = f"{paths.kept_memory}.tmp"
    try:
        written = _copy(paths.memory, temporary)
        os.rename(temporary, paths.kept_memory)
        sync_directory(paths.root)
        os.unlink(paths.memory)
    except OSError as error:
        raise host_error(error, paths.kept_memory) from error
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    return written


def _copy(source: str, target: str) -> int:
    """Copy with holes, owner and mode."""
    written = 0
    with open(source, "rb") as memory, open(target, "wb") as file:
        info = os.fstat(memory.fileno())
        os.ftruncate(file.fileno(), info.st_size)
        for start, end in _data(memory.fileno(), info.st_size):
            for offset in range(start, end, _PIECE):
                piece = os.pread(memory.fileno(), min(_PIECE, end - offset), offset)
                written += _write(file.fileno(), piece, offset)
        os.fchown(file.fileno(), info.st_uid, info.st_gid)
        os.fchmod(file.fileno(), info.st_mode & 0o777)
        os.fsync(file.fileno())
    return written


def _write(fd: int, piece: bytes, offset: int) -> int:
    """Write what is not zero; guests clear much of their memory."""
    if not piece.strip(b"\0"):
        return 0
    view = memoryview(piece)
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)
    return done


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end
