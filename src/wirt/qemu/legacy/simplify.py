"""A description without what it need not say: places that the compiler gives by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec

from wirt.errors import WirtError
from wirt.qapi.capabilities import Capabilities
from wirt.qapi.value import Argument
from wirt.qemu.compile import arguments
from wirt.qemu.nic import nic_id
from wirt.qemu.runtime import Runtime
from wirt.spec.disk import Disk
from wirt.spec.machine import Machine
from wirt.spec.nic import Nic

T = TypeVar("T")


def simplify(machine: Machine, capabilities: Capabilities) -> Machine:
    """Return the shortest description of the same line. Raises SpecError, MissingDependency."""
    wanted = _compiled(machine, capabilities)
    everything = _all_open(machine)
    if _is_same(everything, wanted, capabilities):
        return canonical(everything)
    for shorter in _steps(machine):
        if _is_same(shorter(machine), wanted, capabilities):
            machine = shorter(machine)
    return canonical(machine)


def canonical(value: T) -> T:
    """Return the struct with its defaults as such: what is written leaves them out."""
    if not isinstance(value, msgspec.Struct):
        return value
    changes = {}
    for field in msgspec.structs.fields(value):
        now = getattr(value, field.name)
        if field.default is not msgspec.NODEFAULT and now == field.default:
            changes[field.name] = field.default
        elif isinstance(now, tuple):
            changes[field.name] = tuple(canonical(item) for item in now)
        else:
            changes[field.name] = canonical(now)
    return msgspec.structs.replace(value, **changes)


class _Open:
    """One thing left open: a field of the machine, of a disk or of a card."""

    def __init__(self, kind: str, index: int = 0) -> None:
        self.kind = kind
        self.index = index

    def __call__(self, machine: Machine) -> Machine:
        change = msgspec.structs.replace
        match self.kind:
            case "cpu":
                cpu = change(machine.cpu, sockets=0, cores=0, threads=0)
                return change(machine, cpu=cpu)
            case "usb":
                return change(machine, usb=change(machine.usb, controller="none"))
            case "order":
                return change(machine, boot=change(machine.boot, order=()))
            case "panic":
                return change(machine, panic_notifier=True)
            case "hotplug":
                return change(machine, hotplug=True)
            case "disk":
                return change(machine, disks=_changed(machine.disks, self.index, _open_disk))
            case "controller":
                return change(machine, disks=_changed(machine.disks, self.index, _open_controller))
            case _:
                return change(machine, nics=_changed(machine.nics, self.index, _open_nic))


def _changed(items: tuple[T, ...], index: int, act: Callable[[T], T]) -> tuple[T, ...]:
    return tuple(act(item) if place == index else item for place, item in enumerate(items))


def _open_disk(disk: Disk) -> Disk:
    return msgspec.structs.replace(disk, bus_index=None, unit=None, address="")


def _open_controller(disk: Disk) -> Disk:
    return msgspec.structs.replace(disk, bus_index=None)


def _open_nic(nic: Nic) -> Nic:
    return msgspec.structs.replace(nic, address="")


def _steps(machine: Machine) -> Iterator[_Open]:
    for kind in ("cpu", "usb", "order", "panic", "hotplug"):
        yield _Open(kind)
    for index in range(len(machine.disks)):
        yield _Open("disk", index)
        yield _Open("controller", index)
    for index in range(len(machine.nics)):
        yield _Open("nic", index)


def _all_open(machine: Machine) -> Machine:
    for step in _steps(machine):
        machine = step(machine)
    return machine


def _is_same(
    machine: Machine, wanted: tuple[Argument, ...] | None, capabilities: Capabilities
) -> bool:
    try:
        return _compiled(machine, capabilities) == wanted
    except WirtError:
        return False


def _compiled(machine: Machine, capabilities: Capabilities) -> tuple[Argument, ...]:
    names = [f"{nic_id(nic, index)}-net" for index, nic in enumerate(machine.nics)]
    runtime = Runtime(
        accelerator="tcg",
        directory="/",
        socket=lambda name: f"/{name[:40]}",
        firmware_code="/code",
        uefi_variables="/variables",
        overlays={index: f"/overlay{index}" for index in range(len(machine.disks))},
        uplinks={name: {"type": "user"} for name in names},
    )
    return arguments(machine, runtime, capabilities)
