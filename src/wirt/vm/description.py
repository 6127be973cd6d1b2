"""The description of a machine, as its file says it now."""

from __future__ import annotations

import os

import msgspec

from wirt.errors import WrongState
from wirt.spec import toml
from wirt.spec.machine import Machine
from wirt.store.layout import VmPaths
from wirt.store.machines import read_spec
from wirt.store.record import Summary
from wirt.typed_json import decode


def load_spec(paths: VmPaths) -> Machine:
    """Return the description as machine.toml says it now; its name is its directory's."""
    machine = toml.load(read_spec(paths), file=paths.spec)
    return msgspec.structs.replace(machine, name=paths.name)


def load_started(paths: VmPaths) -> Machine:
    """Return the description that the running QEMU was started with.

    Raises WrongState for one that an older wirt started.
    """
    try:
        with open(paths.started, "rb") as file:
            return decode(file.read(1 << 20), Machine)
    except (OSError, msgspec.MsgspecError) as error:
        raise WrongState(
            f"it is not known what {paths.name} was started with",
            hint=f"wirt restart {paths.name}",
        ) from error


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
