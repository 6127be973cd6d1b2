"""The description of a machine, as its file says it now."""

from __future__ import annotations

import os

import msgspec

from wirt.spec import toml
from wirt.spec.machine import Machine
from wirt.store.layout import VmPaths
from wirt.store.machines import read_spec
from wirt.store.record import Summary


def load_spec(paths: VmPaths) -> Machine:
    """Return the description as machine.toml says it now; its name is its directory's."""
    machine = toml.load(read_spec(paths), file=paths.spec)
    return msgspec.structs.replace(machine, name=paths.name)


def summarise(paths: VmPaths, machine: Machine) -> Summary:
    """Return the summary of ``machine``, which machine.toml holds."""
    info = os.stat(paths.spec)
    return Summary(
        memory=machine.memory,
        vcpus=machine.cpu.vcpus,
        uuid=machine.uuid,
        autostart=machine.autostart,
        mtime_ns=info.st_mtime_ns,
        size=info.st_size,
    )
