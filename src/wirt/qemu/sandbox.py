"""QEMU's own system call filter.

What it forbids ends QEMU with SIGSYS and without a word (``spawn``), so the filter allows
what the machine's description needs.
"""

from __future__ import annotations

from wirt.qapi.value import Argument, QapiObject
from wirt.qemu.netdev import needs_spawn
from wirt.spec.console import Window
from wirt.spec.machine import Machine


def sandbox(machine: Machine) -> Argument:
    """Return ``-sandbox``; starting programs is allowed only to machines that must."""
    spawns = any(needs_spawn(nic.backend) for nic in machine.nics)
    windows = any(isinstance(display, Window) for display in machine.displays)
    value: QapiObject = {
        "enable": True,
        "obsolete": "deny",
        "elevateprivileges": "deny",
        "spawn": "allow" if spawns or windows else "deny",
        "resourcecontrol": "deny",
    }
    return Argument("-sandbox", value)
