"""PCI slots that the description itself gives away, so that nothing else is put there."""

from __future__ import annotations

import re

from wirt.qemu.board import ROOT_BUSES
from wirt.spec.machine import Machine

_ADDRESS = re.compile(r"[,{]\"?addr\"?[=:]\"?(?:0x)?([0-9a-fA-F]{1,2})(?:\.[0-7])?[\",}]")
_BUS = re.compile(r"[,{]\"?bus\"?[=:]\"?([\w.-]+)")


def reserved_slots(machine: Machine) -> frozenset[int]:
    """Return the slots that disks, cards and words for QEMU name themselves."""
    named = [disk.address for disk in machine.disks] + [nic.address for nic in machine.nics]
    slots = {slot_of(address) for address in named if address}
    for word in machine.qemu.args:
        found = _ADDRESS.search(f"{word},")
        bus = _BUS.search(word)
        if found and (bus is None or bus[1] in ROOT_BUSES):
            slots.add(int(found[1], 16))
    return frozenset(slots)


def slot_of(address: str) -> int:
    """Return the slot of ``4.1``."""
    return int(address.partition(".")[0], 16)
