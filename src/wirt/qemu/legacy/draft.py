"""A machine while its line is being read: what the options said, in their own terms."""

from __future__ import annotations

from typing import Any

import msgspec

from wirt.qapi.capabilities import Capabilities
from wirt.qemu.legacy.facts import Facts
from wirt.qemu.legacy.line import Given
from wirt.qemu.legacy.note import Refused
from wirt.qemu.legacy.values import Values
from wirt.spec.console import CharBackend, SharesSerial
from wirt.spec.hardware import SoundCard, UsbDevice
from wirt.spec.nic import Backend


class Drive(msgspec.Struct):
    """``-drive``, ``-hda`` and their like. ``place`` is bus and unit, once they are known."""

    file: str
    interface: str = ""
    media: str = ""
    image_format: str = ""
    index: int | None = None
    bus: int | None = None
    unit: int | None = None
    id: str = ""
    boots: bool = False
    boot_index: int | None = None
    settings: dict[str, Any] = msgspec.field(default_factory=dict)
    """Fields of ``spec.disk.Disk``."""
    position: int = 0
    shown: bool = True
    """False for ``if=none`` until a ``-device`` shows it."""


class Card(msgspec.Struct):
    """A network card, on a ``vlan`` or at the netdev of that name."""

    model: str = ""
    mac: str = ""
    id: str = ""
    vlan: int | None = None
    netdev: str = ""
    address: str = ""
    boot_index: int | None = None
    gives_mac: bool = True
    """``-net nic`` has an address of its own; ``-device`` leaves it to QEMU."""


class Wire(msgspec.Struct):
    """What is behind cards: a backend of the spec, or words that only QEMU understands."""

    backend: Backend | None = None
    words: list[tuple[str, str]] = msgspec.field(default_factory=list)
    uplink: dict[str, Any] = msgspec.field(default_factory=dict)
    id: str = ""
    vlan: int | None = None


class Screen(msgspec.Struct):
    """Who shows the picture, and how."""

    toolkit: str = ""
    asked: bool = False
    nographic: bool = False
    none: bool = False
    full_screen: bool = False
    grab: str = ""
    options: list[str] = msgspec.field(default_factory=list)
    servers: list[Any] = msgspec.field(default_factory=list)


class Port(msgspec.Struct):
    """A serial or parallel port or a monitor, as asked for."""

    backend: CharBackend | SharesSerial | None
    mux: bool = False
    mode: str = "readline"


class Node(msgspec.Struct):
    """A ``-blockdev`` or ``-object``: its parts, and the words if nothing else takes it."""

    parts: dict[str, str]
    words: tuple[str, ...]
    position: int
    used: bool = False


class Draft(msgspec.Struct):
    """Everything that the options said."""

    program: str
    facts: Facts
    capabilities: Capabilities
    settings: dict[str, Any] = msgspec.field(default_factory=dict)
    """Fields of ``spec.machine.Machine``."""
    boot: dict[str, Any] = msgspec.field(default_factory=dict)
    rtc: dict[str, Any] = msgspec.field(default_factory=dict)
    cpu: dict[str, Any] = msgspec.field(default_factory=dict)
    actions: dict[str, Any] = msgspec.field(default_factory=dict)
    watchdog: dict[str, Any] = msgspec.field(default_factory=dict)
    firmware: dict[str, Any] = msgspec.field(default_factory=dict)
    board_options: dict[str, str] = msgspec.field(default_factory=dict)
    cpu_features: list[str] = msgspec.field(default_factory=list)
    numa: list[tuple[int, str, str]] = msgspec.field(default_factory=list)
    """Memory (0: a fair share), vcpus and memory object of each node."""
    memory_backend: str = ""
    drives: list[Drive] = msgspec.field(default_factory=list)
    floppy_boot: dict[str, int] = msgspec.field(default_factory=dict)
    chs: dict[str, Any] = msgspec.field(default_factory=dict)
    cards: list[Card] = msgspec.field(default_factory=list)
    wires: list[Wire] = msgspec.field(default_factory=list)
    hub_ports: dict[str, tuple[int, str]] = msgspec.field(default_factory=dict)
    """Name of a port → its hub, and the backend that it joins to the hub."""
    renamed: dict[str, str] = msgspec.field(default_factory=dict)
    """Name of a netdev in the line → what a card is joined to now."""
    hubs: set[int] = msgspec.field(default_factory=set)
    """vlans that are hubs even with one card."""
    dumps: list[tuple[int, str, int]] = msgspec.field(default_factory=list)
    """vlan, file and most bytes of a packet."""
    user: dict[str, Any] = msgspec.field(default_factory=dict)
    """``-tftp`` and its like, for every user network."""
    redirections: list[Any] = msgspec.field(default_factory=list)
    screen: Screen = msgspec.field(default_factory=Screen)
    serials: list[Port] = msgspec.field(default_factory=list)
    parallels: list[Port] = msgspec.field(default_factory=list)
    monitors: list[Port] = msgspec.field(default_factory=list)
    chardevs: dict[str, Values] = msgspec.field(default_factory=dict)
    nodes: dict[str, Node] = msgspec.field(default_factory=dict)
    objects: dict[str, Node] = msgspec.field(default_factory=dict)
    fd_sets: dict[str, str] = msgspec.field(default_factory=dict)
    """Number of a set of descriptors → the descriptor."""
    devices: list[Given] = msgspec.field(default_factory=list)
    ports: dict[str, Any] = msgspec.field(default_factory=dict)
    """Devices with ids of wirt's own that the description says otherwise."""
    channels: list[Any] = msgspec.field(default_factory=list)
    boot_places: dict[int, str] = msgspec.field(default_factory=dict)
    """Place in the boot order → kind of device, from bootindex."""
    serial_names: dict[str, int] = msgspec.field(default_factory=dict)
    """Character device of a serial port → number of the port."""
    needs_audio: bool = False
    monitors_of: dict[str, str] = msgspec.field(default_factory=dict)
    """Character device → mode of the monitor on it."""
    usb: list[UsbDevice] = msgspec.field(default_factory=list)
    has_usb: bool = False
    sound: list[SoundCard] = msgspec.field(default_factory=list)
    args: list[str] = msgspec.field(default_factory=list)
    """Words for QEMU that belong to the machine."""
    early: list[str] = msgspec.field(default_factory=list)
    """Words for QEMU that other words of the machine name."""
    process: list[str] = msgspec.field(default_factory=list)
    """Words for QEMU that belong to this run of it."""
    warnings: list[str] = msgspec.field(default_factory=list)
    defaults: bool = True
    """False after ``-nodefaults``."""
    networked: bool = False
    """True after any ``-net``, ``-netdev`` or ``-nic``: no default network."""
    snapshot: bool = False
    daemonize: bool = False
    query: list[str] = msgspec.field(default_factory=list)
    """Words of a line that only asks (``-cpu ?``)."""
    made: int = 0

    def fresh(self, stem: str) -> str:
        """Return a name that no other object of the line has."""
        self.made += 1
        return f"{stem}{self.made - 1}"

    def find_drive(self, name: str) -> Drive | None:
        """Return the drive of that id."""
        return next((drive for drive in self.drives if name and drive.id == name), None)

    def need(self, path: str, what: str) -> None:
        """Refuse a path that is not on this host, if that matters."""
        if self.facts.strict and not self.facts.exists(path):
            raise Refused(f"{what} {path} is not on this host")
