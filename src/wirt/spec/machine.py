"""A machine, described completely. Immutable; ``msgspec.structs.replace`` makes variants."""

from typing import Annotated, Literal

import msgspec

from wirt.spec.console import Channel, Display, Monitor, Parallel, Serial, Video
from wirt.spec.disk import Disk
from wirt.spec.hardware import (
    Actions,
    Boot,
    Cpu,
    Firmware,
    NumaNode,
    Qemu,
    Rtc,
    SoundCard,
    Tpm,
    Usb,
    Watchdog,
)
from wirt.spec.nic import Nic
from wirt.spec.setting import NAME_PATTERN, setting, size, text
from wirt.units import GIB, MIB


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What QEMU is asked for. All sizes are bytes."""

    name: Annotated[str, text("Name of the machine", pattern=NAME_PATTERN)]
    uuid: Annotated[
        str,
        text(
            "UUID; empty: made when the machine is created",
            pattern=r"^([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})?$",
        ),
    ] = ""
    title: Annotated[str, text("Name in window titles; empty: the name")] = ""
    description: Annotated[str, text("For people", flags=("--description",))] = ""
    memory: Annotated[
        int, size("Memory", flags=("-m", "--memory"), default_unit="M", ge=1 << 20)
    ] = GIB
    memory_path: Annotated[
        str, text("Directory (of huge pages) or file that holds the memory; empty: anonymous")
    ] = ""
    memory_prealloc: Annotated[bool, setting("Take all memory from the host at the start")] = False
    numa: Annotated[tuple[NumaNode, ...], setting("NUMA nodes; none: one of all")] = ()
    cpu: Annotated[Cpu, setting("Processors")] = Cpu()
    accelerator: Annotated[
        Literal["auto", "kvm", "tcg"],
        setting("KVM, TCG (software), or KVM where it really works", flags=("--accel",)),
    ] = "auto"
    tcg_cache: Annotated[int, size("Translation cache of TCG; 0: QEMU's", default_unit="M")] = (
        64 * MIB
    )
    machine_type: Annotated[
        str,
        text(
            "Board; create turns q35 or pc into a versioned type",
            flags=("--machine-type",),
            pattern=r"^[A-Za-z0-9][\w.,=-]*$",
        ),
    ] = "q35"
    firmware: Annotated[Firmware, setting("What starts the machine")] = Firmware()
    tpm: Annotated[Tpm, setting("Trusted Platform Module")] = Tpm()
    boot: Annotated[Boot, setting("Where the guest comes from")] = Boot()
    disks: Annotated[tuple[Disk, ...], setting("Drives")] = ()
    scsi_controller: Annotated[
        Literal["virtio-scsi", "lsi53c895a"],
        setting("Controller of SCSI disks; the second is for guests before 2012"),
    ] = "virtio-scsi"
    nics: Annotated[tuple[Nic, ...], setting("Network cards")] = ()
    displays: Annotated[tuple[Display, ...], setting("Servers or windows for the screen")] = ()
    video: Annotated[Video, setting("Graphics card")] = Video()
    serials: Annotated[tuple[Serial, ...], setting("Serial ports")] = (Serial(),)
    parallels: Annotated[tuple[Parallel, ...], setting("Parallel ports")] = ()
    monitors: Annotated[tuple[Monitor, ...], setting("Further monitors of QEMU")] = ()
    channels: Annotated[tuple[Channel, ...], setting("virtio-serial ports")] = ()
    sound: Annotated[tuple[SoundCard, ...], setting("Sound cards")] = ()
    audio: Annotated[
        Literal["none", "alsa", "oss", "pa", "pipewire", "sdl"],
        setting("Where sound is heard on the host; none: nowhere"),
    ] = "none"
    usb: Annotated[Usb, setting("USB")] = Usb()
    rtc: Annotated[Rtc, setting("Real-time clock")] = Rtc()
    rng: Annotated[bool, setting("Entropy from the host (virtio-rng)")] = True
    balloon: Annotated[bool, setting("Memory can be given back (virtio-balloon)")] = True
    vmgenid: Annotated[bool, setting("Tell the guest when it was forked or restored")] = True
    forkable: Annotated[
        Literal["auto", "on", "off"],
        setting(
            "Memory in a file, so that forks share it at once, instead of a balloon; "
            "auto: with TCG, where there is room"
        ),
    ] = "auto"
    panic_notifier: Annotated[bool, setting("The guest can tell its panics (needs ACPI)")] = True
    hotplug: Annotated[
        bool, setting("Cards can be plugged while it runs; on q35 that takes root ports")
    ] = True
    watchdog: Annotated[Watchdog | None, setting("Watchdog")] = None
    actions: Annotated[Actions, setting("Reactions to events in the guest")] = Actions()
    hpet: Annotated[bool, setting("High precision event timer")] = True
    acpi: Annotated[bool, setting("ACPI")] = True
    autostart: Annotated[bool, setting("Started by `wirt autostart`", flags=("--autostart",))] = (
        False
    )
    qemu: Annotated[Qemu, setting("What wirt does not model")] = Qemu()
