"""Everything about one machine: settings, state, what confines it, and QEMU's line."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
from msgspec.structs import replace

from wirt.errors import WirtError
from wirt.host.accel import choose_accelerator
from wirt.host.confine import read_confinement
from wirt.host.qemu_probe import probe
from wirt.store.machines import find
from wirt.vm import state
from wirt.vm.context import Context
from wirt.vm.description import load_spec
from wirt.vm.network.uplinks import planned
from wirt.vm.served import as_served, find_served
from wirt.vm.start import DEFAULT_BINARY, command_line, runtime_of


def inspect(context: Context, name: str) -> dict[str, Any]:
    """Return the machine as plain data. Raises NotFound, SpecError."""
    paths = find(context.home, name)
    found = state.look(paths)
    machine = load_spec(paths)
    life = found.record.run if found.is_up else None
    facts: dict[str, Any] = {
        "name": name,
        "status": found.status,
        "note": found.note,
        "directory": paths.root,
        "image": found.record.image,
        "machine": msgspec.to_builtins(machine),
    }
    if life is not None:
        facts["pid"] = life.pid
        facts["started"] = life.started
        facts["accelerator"] = {"name": life.accelerator, "reason": life.accelerator_reason}
        facts["forwards"] = life.forwards
        facts["sockets"] = paths.runtime
        facts["served"] = msgspec.to_builtins(life.served)
        with contextlib.suppress(WirtError):
            facts["confinement"] = msgspec.to_builtins(read_confinement(life.pid))
    return facts


def argv(context: Context, name: str) -> list[str]:
    """Return the line of the running QEMU, or the one that the next start would use."""
    paths = find(context.home, name)
    found = state.look(paths, ask=False)
    if found.is_up and found.record.run is not None:
        return list(found.record.run.argv)
    machine = load_spec(paths)
    capabilities = probe(machine.qemu.binary or DEFAULT_BINARY, context.home.cache)
    accelerator = choose_accelerator(
        machine.accelerator, cache_dir=context.home.cache, built_in=capabilities.accelerators
    )
    machine = as_served(machine, find_served(paths, machine))
    runtime = replace(runtime_of(paths, machine, accelerator), uplinks=planned(machine))
    return command_line(machine, runtime, capabilities, found.record)
