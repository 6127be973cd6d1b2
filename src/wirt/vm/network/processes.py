"""Processes that serve wires: known by record, found by the lock they hold, ended all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from wirt.errors import HostError
from wirt.host.holders import processes_given, processes_with
from wirt.host.process_id import ProcessId
from wirt.net import helper
from wirt.store.layout import NetworkPaths
from wirt.store.locks import join_run_lock
from wirt.store.wires import Process
from wirt.vm.state import boot_id


def recorded(process: ProcessId) -> Process:
    """Return the name under which a process is remembered."""
    return Process(process.pid, process.start_ticks, boot_id())


def own_process() -> Process:
    """Return the name of this process. Raises HostError where ``/proc`` hides it."""
    found = ProcessId.of(os.getpid())
    if found is None:
        raise HostError("this process does not find itself in /proc")
    return recorded(found)


def living(process: Process | None) -> ProcessId | None:
    """Return a remembered process if it lives."""
    if process is None or process.boot_id != boot_id():
        return None
    found = ProcessId(process.pid, process.start_ticks)
    return found if found.alive() else None


@contextmanager
def tag(paths: NetworkPaths) -> Iterator[int]:
    """Yield a descriptor to inherit, by which what serves a wire is found again.

    A command may be killed before it has written down what it started.
    """
    fd = join_run_lock(paths.run_lock)
    try:
        yield fd
    finally:
        os.close(fd)


def end_all(paths: NetworkPaths, *, argument: str = "", but: tuple[ProcessId, ...] = ()) -> None:
    """End every process that serves a wire, also those that no record knows.

    ``argument`` finds a program that closes what it inherits.
    """
    named = processes_given(argument) if argument else []
    for process in {*processes_with(paths.run_lock), *named} - {*but}:
        helper.end(process)
