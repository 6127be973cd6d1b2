"""Boot order: bootindex on the devices, so that the firmware tries nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from wirt.qapi.value import Argument, QapiObject
from wirt.qemu.runtime import Runtime
from wirt.spec.disk import Disk
from wirt.spec.hardware import BootDevice
from wirt.spec.machine import Machine

DEFAULT_ORDER: tuple[BootDevice, ...] = ("disk", "cdrom", "floppy")
_LETTERS = {"floppy": "a", "disk": "c", "cdrom": "d", "network": "n"}
_STEP = 1000
"""Distance of the indexes given by kind: explicit boot_index values (to 255) go first."""


def _kind(disk: Disk) -> BootDevice:
    if disk.bus == "floppy":
        return "floppy"
    return "cdrom" if disk.media == "cdrom" else "disk"


def _order(machine: Machine) -> Sequence[BootDevice]:
    return machine.boot.order or DEFAULT_ORDER


def _by_letters(machine: Machine) -> bool:
    """``once`` exists only in the letters of old, which bootindex would override."""
    return bool(machine.boot.once)


def disk_boot_indexes(machine: Machine) -> list[int | None]:
    """Return the bootindex of each disk; None where the machine does not boot from it."""
    kinds = [_kind(disk) for disk in machine.disks]
    return [
        _index(machine, kind, place, disk.boot_index)
        for place, (disk, kind) in enumerate(zip(machine.disks, kinds, strict=True))
    ]


def nic_boot_indexes(machine: Machine) -> list[int | None]:
    """Return the bootindex of each network card."""
    return [
        _index(machine, "network", place, nic.boot_index) for place, nic in enumerate(machine.nics)
    ]


def _index(machine: Machine, kind: BootDevice, place: int, explicit: int | None) -> int | None:
    if explicit is not None:  # a kernel that is booted directly has index 0
        return explicit + bool(machine.boot.kernel)
    order = _order(machine)
    if machine.boot.kernel or _by_letters(machine) or kind not in order:
        return None
    return _STEP * (1 + order.index(kind)) + place


def boot_arguments(machine: Machine, runtime: Runtime) -> list[Argument]:
    """Return ``-boot`` and the directly booted kernel."""
    boot = machine.boot
    value: QapiObject = {"menu": boot.menu, "strict": not _by_letters(machine)}
    if _by_letters(machine):
        value["order"] = _letters(_order(machine))
        value["once"] = _letters(boot.once)
    made = [Argument("-boot", value)]
    if boot.kernel:
        made.append(Argument("-kernel", runtime.path(boot.kernel)))
        if boot.initrd:
            made.append(Argument("-initrd", runtime.path(boot.initrd)))
        if boot.cmdline:
            made.append(Argument("-append", boot.cmdline))
    return made


def _letters(kinds: Sequence[BootDevice]) -> str:
    return "".join(_LETTERS[kind] for kind in dict.fromkeys(kinds))  # QEMU refuses one twice
