"""Boards and the places on their buses: every device gets an explicit, stable address.

What is added later must not move what is there, since guests name their network cards by
place. So each kind of device has places of its own:

======================  =========================  ========================
kind                    q35 (``pcie.0``)           i440fx (``pci.0``)
======================  =========================  ========================
graphics                1                          2
pluggable cards         root ports 0-7 (slot 2)    3-5, e, f
pluggable disks         root ports 8-31 (slots     10-1b
                        3-5)
one of its kind (USB,   6-d                        6-d
rng, balloon …)
other cards             10-15                      as pluggable cards
other disks             16-1a                      as pluggable disks
the rest (sound …)      1b-1e                      1c-1f
======================  =========================  ========================

A kind whose places are used up borrows from the end of the others'. Without ``hotplug`` there are
no root ports: QEMU starts sooner, and pluggable cards and disks have places as the others do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import msgspec

from wirt.errors import SpecError
from wirt.qapi.value import Argument, QapiObject, device

SPARE_PORTS = 2
"""Root ports left free for cards, and as many for disks, that are plugged later."""

Kind = Literal["nic", "disk", "other"]

_FUNCTIONS = 8
_SINGLE = {
    "usb": 0x6,
    "serial": 0x7,
    "rng": 0x8,
    "balloon": 0x9,
    "watchdog": 0xA,
    "scsi": 0xB,
    "ahci": 0xC,
    "sdhci": 0xD,
}
ROOT_BUSES = ("pcie.0", "pci.0")
USB_PORTS = {"xhci": 15, "ehci": 6, "uhci": 2}


class _Layout(msgspec.Struct, frozen=True):
    bus: str
    video: int
    slots: Mapping[Kind, Sequence[int]]
    ports: Mapping[Kind, range] = msgspec.field(default_factory=dict)
    first_port_slot: int = 2


_Q35 = _Layout(
    bus="pcie.0",
    video=0x1,
    slots={"nic": range(0x10, 0x16), "disk": range(0x16, 0x1B), "other": range(0x1B, 0x1F)},
    ports={"nic": range(8), "disk": range(8, 32)},
)
_I440FX = _Layout(
    bus="pci.0",
    video=0x2,
    slots={
        "nic": (0x3, 0x4, 0x5, 0xE, 0xF),
        "disk": range(0x10, 0x1C),
        "other": range(0x1C, 0x20),
    },
)


class Board:
    """The places given so far on one machine."""

    def __init__(
        self,
        machine_type: str,
        *,
        usb: str = "xhci",
        scsi: str = "virtio-scsi",
        reserved: Collection[int] = (),
        hotplug: bool = True,
    ) -> None:
        self.machine_type = machine_type
        self.usb_controller = usb
        self.scsi_controller = scsi
        self._layout = _layout(machine_type)
        slots = self._layout.slots if self._layout else {}
        self._reserved = reserved
        self._slots = {kind: [s for s in slots[kind] if s not in reserved] for kind in slots}
        self._port_numbers = self._layout.ports if self._layout and hotplug else {}
        self._ports = dict.fromkeys(self._port_numbers, 0)
        self._usb_ports = 0

    @property
    def is_pcie(self) -> bool:
        return self._layout is _Q35

    @property
    def has_pci(self) -> bool:
        return self._layout is not None

    def video(self) -> QapiObject:
        """Return the place of the graphics card; on an ISA board there is nothing to say."""
        return self._own_slot(self._layout.video) if self._layout else {}

    def at(self, address: str) -> QapiObject:
        """Return the place that the description names: a slot of the root bus."""
        slot, dot, function = address.partition(".")
        place = self._at(int(slot, 16))
        return {**place, "addr": f"{place['addr']}{dot}{function}"}

    def single(self, kind: str) -> QapiObject:
        """Return the place of a device that there is one of. Raises SpecError without PCI."""
        return self._own_slot(_SINGLE[kind])

    def _own_slot(self, number: int) -> QapiObject:
        return self.slot("other") if number in self._reserved else self._at(number)

    def slot(self, kind: Kind) -> QapiObject:
        """Return a place for a device that stays. Raises SpecError when all are taken."""
        own = self._slots.get(kind)
        if own:
            return self._at(own.pop(0))
        for others in self._slots.values():
            if others:
                return self._at(others.pop())
        if self.has_pci:
            raise SpecError(
                f"{self.machine_type} has no free PCI slot left", hint="use fewer devices"
            )
        return self._at(0)

    def pluggable(self, kind: Kind) -> QapiObject:
        """Return a place that can be emptied and filled while the machine runs.

        Without root ports, or when they are used up, the device finds a place, but stays there.
        """
        ports = self._port_numbers.get(kind, range(0))
        used = self._ports.get(kind, 0)
        if used >= len(ports):
            return self.slot(kind)
        self._ports[kind] = used + 1
        return port_place(ports[used])

    def usb(self, *, full_speed: bool = False) -> QapiObject:
        """Return a place on the USB bus; ``full_speed``: for a device that knows USB 1 only.

        Raises SpecError when all ports are taken, or too fast for the device.
        """
        if full_speed and self.usb_controller == "ehci":
            raise SpecError(
                "the ehci controller takes no USB 1 devices",
                key="usb.controller",
                hint='use "xhci" or "uhci"',
            )
        self._usb_ports += 1
        count = USB_PORTS[self.usb_controller]
        if self._usb_ports > count:
            raise SpecError(
                f"the {self.usb_controller} controller has {count} ports",
                key="usb",
                hint='usb.controller = "xhci" has 15',
            )
        return {"bus": "usb.0", "port": str(self._usb_ports)}

    def ports(self) -> list[Argument]:
        """Return the root ports, those used and some spare ones of each kind."""
        if not self._layout:
            return []
        made = []
        for kind, numbers in self._port_numbers.items():
            count = min(len(numbers), self._ports[kind] + SPARE_PORTS)
            made += [device(_port(number, self._layout)) for number in numbers[:count]]
        return made

    def _at(self, slot: int) -> QapiObject:
        if self._layout is None:
            raise SpecError(
                f"{self.machine_type} has no PCI bus",
                hint="use ISA devices only: rng, balloon, vmgenid = false, no virtio",
            )
        return {"bus": self._layout.bus, "addr": f"{slot:#x}"}


def _layout(machine_type: str) -> _Layout | None:
    name = machine_type.partition(",")[0]
    if "q35" in name:
        return _Q35
    if "i440fx" in name or name == "pc":
        return _I440FX
    if name == "isapc":
        return None
    raise SpecError(
        f"wirt does not know the board {name!r}", key="machine_type", hint="q35, pc or isapc"
    )


def port_place(number: int) -> QapiObject:
    """Return the place behind a root port."""
    return {"bus": f"port{number}", "addr": "0x0"}


def _port(number: int, layout: _Layout) -> QapiObject:
    slot, function = divmod(number, _FUNCTIONS)
    value: QapiObject = {
        "driver": "pcie-root-port",
        "id": f"port{number}",
        "bus": layout.bus,
        "addr": f"{layout.first_port_slot + slot:#x}.{function:#x}",
        "chassis": number + 1,
        "port": number,
    }
    if function == 0:
        value["multifunction"] = True
    return value
