"""Starting the console keeper (``wirt.vm.keeper``) of a machine."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
from collections.abc import Mapping

import msgspec

from wirt.errors import HostError
from wirt.host.process import detach, spawn
from wirt.spec.console import Console
from wirt.spec.machine import Machine
from wirt.store.layout import VmPaths
from wirt.store.record import Record
from wirt.units import MIB
from wirt.vm.sockets import listen

LOG_LIMIT = 2 * MIB
"""Of each of the two files of a log."""
_READY_SECONDS = 60.0


def console_names(machine: Machine) -> list[str]:
    """Return the names of the serial ports that wirt keeps: ``serial0`` …"""
    return [
        f"serial{index}"
        for index, serial in enumerate(machine.serials)
        if isinstance(serial.backend, Console)
    ]


def viewers_socket(paths: VmPaths, console: str) -> str:
    """Return where viewers of a console connect."""
    return paths.socket(f"{console}-view")


def console_log(paths: VmPaths, console: str) -> str:
    """Return the log of a console: ``console.log`` for the first, then ``serial1.log`` …"""
    return paths.console_log if console == "serial0" else os.path.join(paths.log, f"{console}.log")


def start_keeper(
    paths: VmPaths,
    record: Record,
    consoles: list[str],
    messages_fd: int | None,
    *,
    devices: Mapping[str, int] | None = None,
) -> None:
    """Start the keeper and return when it is connected, so that no output is missed.

    ``messages_fd`` is the reading end of QEMU's standard error. ``devices`` are connections
    to all of the consoles: then output waits in them, and nobody waits for the keeper. Raises
    HostError.
    """
    if not consoles and messages_fd is None:
        return
    given: list[int] = []
    ready_read, ready_write = os.pipe()
    settings_fd = os.memfd_create("wirt-keeper")
    try:
        entries = _consoles(paths, record, consoles, devices, given)
        settings = _settings(paths, record, entries, messages_fd, ready_write)
        os.write(settings_fd, msgspec.json.encode(settings))
        os.lseek(settings_fd, 0, os.SEEK_SET)
        inherited = [settings_fd, ready_write, *given, *(devices or {}).values()]
        if messages_fd is not None:
            inherited.append(messages_fd)
        script = os.path.join(os.path.dirname(__file__), "keeper.py")
        process = spawn(
            [sys.executable, "-I", "-S", script, str(settings_fd)],
            stdout=subprocess.DEVNULL,  # a reader of ours must not wait for the keeper's end
            stderr=subprocess.DEVNULL,
            pass_fds=inherited,
            new_session=True,
            cwd="/",
        )
        detach(process)
        os.close(ready_write)
        ready_write = -1
        if devices is None:
            _await_ready(ready_read)
    finally:
        for fd in (settings_fd, ready_read, *given):
            os.close(fd)
        if ready_write >= 0:
            os.close(ready_write)


def _settings(
    paths: VmPaths,
    record: Record,
    consoles: list[dict[str, object]],
    messages_fd: int | None,
    ready_fd: int,
) -> dict[str, object]:
    return {
        "uid": record.uid,
        "limit": LOG_LIMIT,
        "ready_fd": ready_fd,
        "messages_fd": messages_fd,
        "messages_log": paths.qemu_log,
        "memory": paths.memory if record.run and record.run.memory == "file" else "",
        "consoles": consoles,
    }


def _consoles(
    paths: VmPaths,
    record: Record,
    consoles: list[str],
    devices: Mapping[str, int] | None,
    given: list[int],
) -> list[dict[str, object]]:
    """Return what the keeper is told of each console; ``given`` gets its viewers' sockets."""
    entries: list[dict[str, object]] = []
    for console in consoles:
        entry: dict[str, object] = {
            "device": paths.socket(console),
            "viewers": viewers_socket(paths, console),
            "log": console_log(paths, console),
            "limit": LOG_LIMIT,
        }
        if devices is not None:  # a viewer may come before the keeper is there
            with contextlib.suppress(FileNotFoundError):
                os.unlink(viewers_socket(paths, console))
            given.append(listen(viewers_socket(paths, console), record.uid))
            entry.update(device_fd=devices[console], viewers_fd=given[-1])
        entries.append(entry)
    return entries


def _await_ready(fd: int) -> None:
    ready, _, _ = select.select([fd], [], [], _READY_SECONDS)
    if not ready or os.read(fd, 1) != b"1":
        raise HostError("the console keeper did not start", hint="see the messages above")


def ensure_keeper(paths: VmPaths, record: Record, consoles: list[str]) -> None:
    """Start the keeper again if it was killed; the output until now is lost."""
    for console in consoles:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(viewers_socket(paths, console))
            except OSError:
                start_keeper(paths, record, consoles, None)
                return
