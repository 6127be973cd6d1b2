"""From a machine's description to the arguments of QEMU: a pure function.

Nothing is left to QEMU's defaults (``-nodefaults``): every device is named, with an explicit
identifier and address, in forms that QEMU 7.2 to 11 accept without a warning.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from msgspec.structs import replace

from wirt.qapi.capabilities import Capabilities
from wirt.qapi.value import Argument, QapiObject
from wirt.qemu import chardev, devices, display, usb
from wirt.qemu.board import Board
from wirt.qemu.boot import boot_arguments, disk_boot_indexes, nic_boot_indexes
from wirt.qemu.check import check
from wirt.qemu.drive import disk_arguments
from wirt.qemu.firmware import firmware
from wirt.qemu.machine import board_arguments, identity, memory, processor
from wirt.qemu.nic import nic_arguments
from wirt.qemu.reserved import reserved_slots
from wirt.qemu.runtime import Runtime
from wirt.qemu.sandbox import sandbox
from wirt.qemu.sound import audio_backend, sound
from wirt.qemu.tpm import tpm
from wirt.spec.machine import Machine


def arguments(
    machine: Machine, runtime: Runtime, capabilities: Capabilities
) -> tuple[Argument, ...]:
    """Return QEMU's arguments. Raises SpecError, and MissingDependency for absent devices."""
    made = (
        *identity(machine),
        *board_arguments(machine, runtime, capabilities),
        *processor(machine, runtime),
        *memory(machine, runtime, capabilities),
        *firmware(machine, runtime),
        *boot_arguments(machine, runtime),
        *(() if runtime.attended else chardev.monitor(runtime)),
        *audio_backend(machine),
        *_devices(machine, runtime),
        *_running(machine, runtime),
    )
    check(made, capabilities)
    if _has_plain_devices(machine.qemu.args):
        made = tuple(_plain(argument) for argument in made)
    return (*made, *(Argument(word) for word in machine.qemu.args))


def _has_plain_devices(words: Sequence[str]) -> bool:
    followed = itertools.pairwise(words)
    return "-virtfs" in words or any(
        option == "-device" and not value.startswith("{") for option, value in followed
    )


def _plain(argument: Argument) -> Argument:
    """QEMU makes all devices in JSON last, after they lost their places to those without."""
    return replace(argument, json=False) if argument.option == "-device" else argument


def _devices(machine: Machine, runtime: Runtime) -> list[Argument]:
    board = Board(
        machine.machine_type,
        usb=usb.controller_kind(machine),
        scsi=machine.scsi_controller,
        reserved=reserved_slots(machine),
        hotplug=machine.hotplug,
    )
    made = [
        *display.video(machine.video, board),
        *display.displays(machine.displays, runtime),
        *usb.usb(machine, board),
        *disk_arguments(machine.disks, disk_boot_indexes(machine), board, runtime),
        *nic_arguments(machine.nics, nic_boot_indexes(machine), board, runtime),
        *chardev.serials(machine.serials, machine.monitors, runtime),
        *chardev.parallels(machine.parallels, runtime),
        *chardev.monitors(machine.monitors, runtime),
        *chardev.channels(machine.channels, board, runtime),
        *(devices.entropy(board) if machine.rng else ()),
        *(devices.balloon(board) if has_balloon(machine, runtime) else ()),
        *(devices.generation_id(runtime) if machine.vmgenid else ()),
        *tpm(machine, runtime),
        *devices.watchdog(machine, board),
        *devices.panic_notifier(machine),
        *sound(machine, board),
    ]
    return [*board.ports(), *made]


def has_balloon(machine: Machine, runtime: Runtime) -> bool:
    """QEMU gives pages back by punching holes into a memory file, where siblings read."""
    return machine.balloon and not runtime.memory_file


def _running(machine: Machine, runtime: Runtime) -> list[Argument]:
    rtc: QapiObject = {"base": machine.rtc.base, "clock": machine.rtc.clock}
    if machine.rtc.drift_fix:
        rtc["driftfix"] = "slew"
    action: QapiObject = {"reboot": machine.actions.reboot, "panic": machine.actions.panic}
    if machine.actions.shutdown != "poweroff":
        action["shutdown"] = machine.actions.shutdown
    if machine.watchdog is not None:
        action["watchdog"] = machine.watchdog.action
    made = [Argument("-rtc", rtc), Argument("-action", action)]
    if runtime.sandbox:
        made.append(sandbox(machine))
    if not runtime.attended:
        made.append(Argument("-msg", {"timestamp": True}))
    if runtime.incoming:
        made.append(Argument("-incoming", "defer"))
    if runtime.paused:
        made.append(Argument("-S"))
    return made
