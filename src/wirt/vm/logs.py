"""What a guest printed on its console, and what its QEMU said."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import BinaryIO

from wirt.store.layout import VmPaths
from wirt.store.machines import find
from wirt.vm import state
from wirt.vm.context import Context

_POLL_SECONDS = 0.2
_CHUNK = 1 << 16


def read(context: Context, name: str, *, qemu: bool = False) -> Iterator[bytes]:
    """Yield the log from its beginning: of the console, or of QEMU."""
    path = _log(find(context.home, name), qemu=qemu)
    for part in (f"{path}.1", path):
        yield from _file(part)


def follow(context: Context, name: str, *, qemu: bool = False) -> Iterator[bytes]:
    """Yield the log, then what is added, until the machine is down."""
    paths = find(context.home, name)
    path = _log(paths, qemu=qemu)
    yield from _file(f"{path}.1")
    file = None
    while True:
        up = state.look(paths, ask=False).is_up
        file = file or _open(path)
        if file is not None:
            yield from _rest(file)
            if _was_rotated(file, path):
                file.close()
                file = None
                continue
        if not up:
            return
        time.sleep(_POLL_SECONDS)


def _open(path: str) -> BinaryIO | None:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        return None


def _was_rotated(file: BinaryIO, path: str) -> bool:
    try:
        return os.stat(path).st_ino != os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def tail(paths: VmPaths, *, qemu: bool, limit: int = 2000) -> str:
    """Return the last characters of a log, for error messages and pages."""
    path = _log(paths, qemu=qemu)
    data = b"".join(_file(path, max(0, _size(path) - limit)))
    return data.decode(errors="replace")


def _log(paths: VmPaths, *, qemu: bool) -> str:
    return paths.qemu_log if qemu else paths.console_log


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _file(path: str, position: int = 0) -> Iterator[bytes]:
    file = _open(path)
    if file is None:
        return
    with file:
        file.seek(position)
        yield from _rest(file)


def _rest(file: BinaryIO) -> Iterator[bytes]:
    while data := file.read(_CHUNK):
        yield data
