"""Machines that start with the host."""

from __future__ import annotations

import os
import sys

from wirt.vm.context import Context
from wirt.vm.listing import list_machines

_UNIT = """\
[Unit]
Description=Machines of wirt that are marked autostart
After=network-online.target local-fs.target
Wants=network-online.target

[Service]
Type=oneshot
RemainAfterExit=yes
# Machines are not services of this unit: stopping it must not stop them.
KillMode=none
{environment}ExecStart={program} autostart

[Install]
WantedBy={target}
"""


def marked(context: Context) -> list[str]:
    """Return the machines whose setting ``autostart`` is true, by name."""
    return [row.name for row in list_machines(context) if row.autostart]


def systemd_unit() -> str:
    """Return a systemd unit for root, or for the user's own manager."""
    home = os.environ.get("WIRT_HOME", "")
    return _UNIT.format(
        environment=f"Environment=WIRT_HOME={home}\n" if home else "",
        program=os.path.abspath(sys.argv[0]),
        target="multi-user.target" if os.geteuid() == 0 else "default.target",
    )
