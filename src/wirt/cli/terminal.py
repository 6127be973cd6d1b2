"""The terminal and the streams of a command in a guest."""

from __future__ import annotations

import contextlib
import os
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from dataclasses import replace

from wirt.errors import UsageError
from wirt.vm.context import Context
from wirt.vm.execute import Order, execute


def run_in_guest(context: Context, name: str, order: Order, *, terminal: bool) -> int:
    """Run ``order``; with ``terminal``, this one is in raw mode meanwhile."""
    if not terminal:
        return execute(context, name, order)
    if not sys.stdin.isatty():
        raise UsageError("-t needs a terminal on standard input", hint="leave -t out")
    fd = sys.stdin.fileno()
    columns, rows = os.get_terminal_size(fd)
    context.say("a terminal by wirt's helper in the guest")
    with raw(fd):
        return execute(context, name, replace(order, stdin=fd, terminal=(rows, columns)))


@contextlib.contextmanager
def raw(fd: int) -> Iterator[None]:
    """Hold the terminal in raw mode."""
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def stdin_or_none() -> int | None:
    """Return the descriptor of standard input, or None where it is closed."""
    try:
        return sys.stdin.fileno() if sys.stdin else None
    except (OSError, ValueError):
        return None


def writer(fd: int) -> Callable[[bytes], None]:
    """Return a sink that writes everything to ``fd``."""

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    return write
