"""The rest of the machine: processors, firmware, boot, clock, USB and small devices."""

from typing import Annotated, Literal

import msgspec

from wirt.spec.setting import number, setting, size, text


class Cpu(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Processors: their number, topology and model."""

    vcpus: Annotated[
        int, number("Number of virtual processors", flags=("--cpus", "--smp"), ge=1, le=1024)
    ] = 1
    model: Annotated[
        str,
        text(
            "Model and features as QEMU names them; auto: host with KVM, qemu64 with TCG",
            flags=("--cpu",),
            pattern=r"^[\w+,.=:-]+$",
            max_length=1000,
        ),
    ] = "auto"
    sockets: Annotated[int, number("Sockets; 0: derived", ge=0, le=1024)] = 0
    cores: Annotated[int, number("Cores of a socket; 0: derived", ge=0, le=1024)] = 0
    threads: Annotated[int, number("Threads of a core; 0: derived", ge=0, le=1024)] = 0
    max_vcpus: Annotated[int, number("Most that can be plugged; 0: vcpus", ge=0, le=1024)] = 0


class Firmware(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What starts the machine. A VM has a UEFI variable store of its own."""

    type: Annotated[Literal["bios", "uefi"], setting("SeaBIOS or OVMF", flags=("--firmware",))] = (
        "bios"
    )
    secure_boot: Annotated[
        bool, setting("UEFI refuses what is not signed", flags=("--secure-boot",))
    ] = False
    code: Annotated[str, text("Firmware file; empty: the host's")] = ""
    variables: Annotated[str, text("Template of the UEFI variables; empty: the host's")] = ""


BootDevice = Literal["disk", "cdrom", "network", "floppy"]


class Boot(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where the guest comes from: drives in order, or a kernel of the host's."""

    order: Annotated[
        tuple[BootDevice, ...], setting("Kinds of device to try; boot_index goes first")
    ] = ()
    once: Annotated[tuple[BootDevice, ...], setting("The same, for the first boot only")] = ()
    menu: Annotated[bool, setting("Show the firmware's boot menu")] = False
    kernel: Annotated[str, text("Kernel to boot directly", flags=("--kernel",))] = ""
    initrd: Annotated[str, text("Its initial RAM disk", flags=("--initrd",))] = ""
    cmdline: Annotated[
        str,
        text("Its command line", flags=("--cmdline",), max_length=2000),
    ] = ""


class Rtc(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The real-time clock."""

    base: Annotated[
        str,
        text(
            "utc, localtime, or a date (2006-06-17T16:01:21)",
            pattern=r"^(utc|localtime|\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\d)?)$",
        ),
    ] = "utc"
    clock: Annotated[Literal["host", "rt", "vm"], setting("What it follows")] = "host"
    drift_fix: Annotated[bool, setting("Inject lost ticks again (old Windows)")] = False


class UsbDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A device on the USB bus."""

    kind: Annotated[
        Literal["tablet", "mouse", "keyboard", "host", "wacom-tablet", "braille", "ccid", "audio"],
        setting("What it is"),
    ]
    vendor: Annotated[str, text("host: vendor id", pattern=r"^([0-9A-Fa-f]{1,4})?$")] = ""
    product: Annotated[str, text("host: product id", pattern=r"^([0-9A-Fa-f]{1,4})?$")] = ""
    bus: Annotated[int, number("host: bus number; 0: any", ge=0, le=255)] = 0
    address: Annotated[int, number("host: address on the bus; 0: any", ge=0, le=255)] = 0


class Usb(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The USB controller and what is plugged into it."""

    controller: Annotated[
        Literal["none", "xhci", "ehci", "uhci"], setting("Controller; none without devices")
    ] = "none"
    devices: Annotated[tuple[UsbDevice, ...], setting("What is plugged in")] = ()


class Watchdog(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A timer that the guest must feed."""

    model: Annotated[Literal["i6300esb", "ib700"], setting("Device")] = "i6300esb"
    action: Annotated[
        Literal["reset", "shutdown", "poweroff", "pause", "debug", "none", "inject-nmi"],
        setting("What happens when it was not fed"),
    ] = "reset"


class Tpm(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A Trusted Platform Module, which swtpm emulates. A VM has one of its own, with its keys."""

    version: Annotated[
        Literal["none", "1.2", "2.0"],
        setting("Specification that it follows, or none", flags=("--tpm",)),
    ] = "none"
    model: Annotated[
        Literal["auto", "tpm-crb", "tpm-tis"],
        setting("Interface to the guest; auto: tpm-crb for 2.0, tpm-tis for 1.2"),
    ] = "auto"


class Actions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the host does on events in the guest."""

    reboot: Annotated[Literal["reset", "shutdown"], setting("The guest reboots")] = "reset"
    panic: Annotated[
        Literal["pause", "shutdown", "exit-failure", "none"], setting("The guest panics")
    ] = "shutdown"
    shutdown: Annotated[Literal["poweroff", "pause"], setting("The guest powers off")] = "poweroff"


VCPUS_PATTERN = r"^(\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*)?$"


class NumaNode(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A part of the memory, and the vcpus that are near it."""

    memory: Annotated[int, size("Memory of the node", default_unit="M", ge=1 << 20)]
    vcpus: Annotated[str, text("Numbers of the vcpus: 0-3,8", pattern=VCPUS_PATTERN)] = ""


SoundCard = Literal[
    "ac97", "hda", "es1370", "sb16", "adlib", "gus", "cs4231a", "pcspk", "virtio", "usb"
]


class Qemu(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The escape hatch: what wirt does not model goes to QEMU as it is."""

    args: Annotated[
        tuple[Annotated[str, text("One word of the command line", pattern=r"^[^\x00]*$")], ...],
        setting("Further words of QEMU's command line"),
    ] = ()
    binary: Annotated[str, setting("QEMU to run; empty: qemu-system-x86_64 in PATH")] = ""
