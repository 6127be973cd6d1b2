"""The terminal and the streams of a command in a guest."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial

from msgspec.structs import replace

from wirt.errors import UsageError
from wirt.vm.context import Context
from wirt.vm.execute import Order, execute
from wirt.vm.session import HelperPort
from wirt.vm.terminal import raw, write_all


def run_in_guest(
    context: Context, name: str, order: Order, *, terminal: bool, port: HelperPort | None = None
) -> int:
    """Run ``order``; with ``terminal``, this one is in raw mode meanwhile."""
    if not terminal:
        return execute(context, name, order, port)
    if not sys.stdin.isatty():
        raise UsageError("-t needs a terminal on standard input", hint="leave -t out")
    fd = sys.stdin.fileno()
    columns, rows = os.get_terminal_size(fd)
    context.say("a terminal by wirt's helper in the guest")
    order = replace(
        order, stdin=fd, terminal=(rows, columns), on_terminal=partial(_follow_size, fd)
    )
    with raw(fd):
        return execute(context, name, order, port)


def _follow_size(fd: int, resize: Callable[[int, int], None]) -> None:
    """Tell the guest's terminal whenever the window of ours changes."""

    def changed(_number: int, _frame: object) -> None:
        columns, rows = os.get_terminal_size(fd)
        resize(rows, columns)

    signal.signal(signal.SIGWINCH, changed)


def stdin_or_none() -> int | None:
    """Return the descriptor of standard input, or None where it is closed."""
    try:
        return sys.stdin.fileno() if sys.stdin else None
    except (OSError, ValueError):
        return None


def writer(fd: int) -> Callable[[bytes], None]:
    """Return a sink that writes everything to ``fd``."""
    return partial(write_all, fd)
