"""Who has a file open, or was started on it."""

from __future__ import annotations

import os

from wirt.host.process_id import ProcessId


def processes_with(path: str) -> list[ProcessId]:
    """Return the processes that have ``path`` open, as far as we may look."""
    try:
        wanted = os.stat(path)
    except FileNotFoundError:
        return []
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid() and _has_open(entry, wanted):
            process = ProcessId.of(int(entry))
            if process is not None:
                found.append(process)
    return found


def _has_open(pid: str, wanted: os.stat_result) -> bool:
    directory = f"/proc/{pid}/fd"
    try:
        return any(_same(f"{directory}/{fd}", wanted) for fd in os.listdir(directory))
    except OSError:
        return False  # gone, or another user's


def _same(path: str, wanted: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), wanted)
    except OSError:
        return False


def processes_given(argument: str) -> list[ProcessId]:
    """Return the processes whose command line has ``argument``, whole, as one of its words."""
    wanted = os.fsencode(argument)
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        process = ProcessId.of(int(entry)) if wanted in words else None
        if process is not None:
            found.append(process)
    return found


def kill_holders(path: str) -> None:
    """End the processes that have ``path`` open, and wait for it."""
    holders = processes_with(path)
    for process in holders:
        process.kill()
    for process in holders:
        process.wait(10.0)
