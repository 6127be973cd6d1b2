"""A free place on the buses of a QEMU that runs, read from its own command line."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Sequence

from wirt.errors import SpecError, WrongState
from wirt.qapi.value import QapiObject
from wirt.qemu.board import port_place
from wirt.spec.nic import Nic

_NIC_PORTS = range(8)
_PCI_SLOTS = range(3, 0x20)


def free_nic_place(nic: Nic, argv: Sequence[str], taken: Collection[str]) -> tuple[QapiObject, str]:
    """Return a place for a card to be plugged, and its name; ``taken`` has names in use.

    Raises SpecError for a card that cannot be plugged, WrongState when all are taken.
    """
    if nic.model == "ne2k_isa":
        raise SpecError("an ISA card cannot be plugged while the machine runs", key="model")
    if nic.model == "usb":
        return {"bus": "usb.0"}, ""
    devices = [
        json.loads(value)
        for option, value in itertools.pairwise(argv)
        if option == "-device" and value.startswith("{")
    ]
    buses = {str(device.get("bus")) for device in devices}
    ports = {str(device.get("id")) for device in devices if device["driver"] == "pcie-root-port"}
    for number in _NIC_PORTS if ports else ():
        name = f"port{number}"
        if name in ports and name not in buses and name not in taken:
            return port_place(number), name
    if "pcie.0" in buses and not ports:
        raise WrongState(
            "no card can be plugged into this machine while it runs",
            hint="`hotplug = true` in its description; machines for one command: --set hotplug=on",
        )
    slots = {str(device.get("addr")) for device in devices if device.get("bus") == "pci.0"}
    for slot in _PCI_SLOTS if "pci.0" in buses else ():
        name = f"{slot:#x}"
        if name not in slots and name not in taken:
            return {"bus": "pci.0", "addr": name}, name
    raise WrongState(
        "no free slot is left for another card", hint="restart the machine: it then has new ones"
    )
