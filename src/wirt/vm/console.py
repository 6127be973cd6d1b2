"""Attaching a terminal to a guest's serial console."""

from __future__ import annotations

import os
import select
import socket

from wirt.errors import HostError, UsageError
from wirt.store.machines import find
from wirt.vm import state
from wirt.vm.context import Context
from wirt.vm.description import load_spec
from wirt.vm.keeping import console_names, ensure_keeper, viewers_socket
from wirt.vm.terminal import raw, write_all

DETACH = b"\x1d"
"""Ctrl-], as in telnet and virsh."""


def attach(context: Context, name: str, *, console: str, stdin: int, stdout: int) -> str:
    """Join terminal and console until Ctrl-], the end of input, or of the machine.

    Returns which of these, in words. Raises WrongState, UsageError, HostError.
    """
    paths = find(context.home, name)
    found = state.require_running(paths)
    consoles = console_names(load_spec(paths))
    if console not in consoles:
        raise UsageError(
            f"{name} has no console {console!r} that wirt keeps",
            hint=f"it has: {', '.join(consoles) or 'none'}",
        )
    ensure_keeper(paths, found.record, consoles)
    viewer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with viewer, raw(stdin):
        try:
            viewer.connect(viewers_socket(paths, console))
        except OSError as error:
            raise HostError(f"the console of {name} cannot be reached: {error.strerror}") from error
        return _join(viewer, stdin, stdout)


def _join(viewer: socket.socket, stdin: int, stdout: int) -> str:
    sources = [viewer.fileno(), stdin]
    while True:
        ready, _, _ = select.select(sources, [], [])
        if viewer.fileno() in ready:
            data = viewer.recv(65536)
            if not data:
                return "the machine ended, or its console did"
            write_all(stdout, data)
        if stdin in ready:
            data = os.read(stdin, 4096)
            before, detach, _ = data.partition(DETACH)
            viewer.sendall(before)
            if detach:
                return "detached"
            if not data:
                sources.remove(stdin)
                return _drain(viewer, stdout)


def _drain(viewer: socket.socket, stdout: int) -> str:
    """After the end of piped input, show what the guest still says for a moment."""
    while select.select([viewer], [], [], 1.0)[0]:
        data = viewer.recv(65536)
        if not data:
            break
        write_all(stdout, data)
    return "end of input"
