"""A terminal of the host: raw while a guest has it."""

from __future__ import annotations

import contextlib
import os
import termios
import tty
from collections.abc import Iterator


@contextlib.contextmanager
def raw(fd: int) -> Iterator[None]:
    """Hold a terminal in raw mode; what is no terminal stays as it is."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def write_all(fd: int, data: bytes) -> None:
    """Write everything; a slow reader makes us wait."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
