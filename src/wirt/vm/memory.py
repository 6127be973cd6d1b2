"""Memory that can be frozen: a sparse file on a RAM file system, shared with the guest.

Such a file system has a limit, and a guest that touches a page beyond it dies with its QEMU.
So a machine gets a file only where all that the others may still grow by stays free.
"""

from __future__ import annotations

import contextlib
import os

from wirt.host.accel import Accelerator
from wirt.spec.machine import Machine
from wirt.store.layout import Home, VmPaths
from wirt.store.record import Record
from wirt.store.states import make_memory_directory, sweep_states
from wirt.units import MIB, format_size
from wirt.vm.context import Context

MARGIN = 64 * MIB
"""What is left to other programs."""


def prepare_memory(
    context: Context, paths: VmPaths, machine: Machine, record: Record, accelerator: Accelerator
) -> str:
    """Make the memory file of a machine that is about to start; "" if it shall have none."""
    remove_memory(paths)
    if machine.numa or machine.memory_path:
        return ""  # several files, or one of the user's own
    if machine.forkable == "off" or (machine.forkable == "auto" and accelerator.name != "tcg"):
        return ""
    try:
        make_memory_directory(context.home)
        sweep_states(context.home)
        left = room(context.home)
    except OSError:
        left = 0
    if left < machine.memory:
        context.say(
            f"no room for forkable memory: {format_size(machine.memory)} wanted, "
            f"{format_size(max(0, left) // MIB * MIB)} left; "
            "forks will take longer"
        )
        return ""
    make_file(paths.memory, record.uid)
    return paths.memory


def make_file(path: str, uid: int) -> None:
    """Make an empty memory file; QEMU gives it its size."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    if uid:
        os.fchown(fd, uid, uid)
    os.close(fd)


def remove_memory(paths: VmPaths) -> None:
    """Remove the memory file of a machine that is down."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(paths.memory)


def room(home: Home) -> int:
    """Return the bytes that a new memory file may have, all promises to others kept."""
    base = os.path.dirname(home.memory)
    facts = os.statvfs(base)
    return facts.f_bavail * facts.f_frsize - promised(base) - MARGIN


def promised(base: str) -> int:
    """Return how much the memory files below ``base`` may still grow: their holes."""
    total = 0
    for directory, _, files in os.walk(base):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                info = os.lstat(os.path.join(directory, name))
                total += max(0, info.st_size - info.st_blocks * 512)
    return total
