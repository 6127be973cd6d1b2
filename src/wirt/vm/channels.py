"""The virtio-serial ports by which wirt talks into a guest, and whether anybody listens."""

from __future__ import annotations

from wirt.protocols.qmp.client import QmpClient
from wirt.protocols.qmp.messages import ChardevInfo
from wirt.spec.console import Channel

AGENT = "org.qemu.guest_agent.0"
"""The port of qemu-guest-agent; also the name of its socket."""

HELPERS = tuple(f"org.wirt.guest.{index}" for index in range(4))
"""The ports of wirt's own helper: one session each."""

STANDARD = tuple(Channel(name=name) for name in (AGENT, *HELPERS))
"""The ports that every machine made by wirt has."""


def open_ports(qmp: QmpClient) -> set[str]:
    """Return the names of the ports that a program in the guest holds open."""
    devices = qmp.execute("query-chardev", reply=list[ChardevInfo])
    return {device.label for device in devices if device.frontend_open}
