"""Boards and the places on their buses: every device gets an explicit, stable address.

q35: what can be plugged while running (virtio disks and cards) sits in a root port of its
own, functions of slots 2 to 5; everything else on the root bus. i440fx: one PCI bus, where
everything can be plugged. A kind of device keeps its slot whether others are there or not,
so that adding a disk does not move the network card.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from wirt.errors import SpecError
from wirt.qapi.value import Argument, QapiObject, device

SPARE_PORTS = 4
"""Root ports left free for devices plugged later."""
_PORTS_PER_SLOT = 8
_PORT_SLOTS = (0x2, 0x3, 0x4, 0x5)

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
_FREE = range(0x10, 0x1F)


@dataclass(slots=True)
class Board:
    """The addresses given so far on one machine."""

    machine_type: str
    _ports: int = 0
    _free: list[int] = field(default_factory=lambda: list(_FREE))

    @property
    def is_pcie(self) -> bool:
        return "q35" in self.machine_type

    @property
    def has_pci(self) -> bool:
        return "isapc" not in self.machine_type

    @property
    def root_bus(self) -> str:
        return "pcie.0" if self.is_pcie else "pci.0"

    def video(self) -> QapiObject:
        """Return the place of the graphics card."""
        return self._at(0x1 if self.is_pcie else 0x2)

    def single(self, kind: str) -> QapiObject:
        """Return the place of a device that there is one of."""
        return self._at(_SINGLE[kind])

    def slot(self) -> QapiObject:
        """Return a free place on the root bus. Raises SpecError when all are taken."""
        if not self._free:
            raise SpecError(
                f"{self.machine_type} has no free PCI slot left", hint="use fewer devices"
            )
        return self._at(self._free.pop(0))

    def pluggable(self) -> QapiObject:
        """Return a place that can be emptied and filled while the machine runs."""
        if not self.is_pcie:
            return self.slot()
        if self._ports >= len(_PORT_SLOTS) * _PORTS_PER_SLOT - SPARE_PORTS:
            raise SpecError("too many virtio disks and network cards", hint="28 in all")
        port = self._ports
        self._ports += 1
        return {"bus": f"port{port}", "addr": "0x0"}

    def _at(self, slot: int) -> QapiObject:
        if not self.has_pci:
            raise SpecError(f"{self.machine_type} has no PCI bus", hint="use ISA devices only")
        return {"bus": self.root_bus, "addr": f"{slot:#x}"}

    def ports(self) -> list[Argument]:
        """Return the root ports, those used and some spare ones."""
        if not self.is_pcie:
            return []
        count = self._ports + SPARE_PORTS
        return [device(_port(index)) for index in range(count)]


def _port(index: int) -> QapiObject:
    slot, function = divmod(index, _PORTS_PER_SLOT)
    value: QapiObject = {
        "driver": "pcie-root-port",
        "id": f"port{index}",
        "bus": "pcie.0",
        "addr": f"{_PORT_SLOTS[slot]:#x}.{function:#x}",
        "chassis": index + 1,
        "port": index,
    }
    if function == 0:
        value["multifunction"] = True
    return value
