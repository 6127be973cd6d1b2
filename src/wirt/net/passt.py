"""passt: a network without privileges that gives the guest the host's own addresses.

One process for each card, which ends with the connection to QEMU.
"""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Sequence

from wirt.errors import MissingDependency, UsageError
from wirt.host.process import detach, find_program, run, spawn
from wirt.spec.nic import Forward

OLDEST_WITH_FORWARDS = (2023, 3, 10)
"""Forwards of the version of 2023-03-09 (Debian 12) stall under load."""


def run_passt(forwards: Sequence[Forward]) -> int:
    """Start passt and return the descriptor of its other end. Raises MissingDependency."""
    line = ["passt", "--foreground", "--quiet", *_options(forwards)]
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = spawn(
                [*line, "--fd", str(theirs.fileno())],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()], new_session=True, cwd="/",
            )  # fmt: skip
        except BaseException:
            ours.close()
            raise
    detach(process)
    return ours.detach()


def _options(forwards: Sequence[Forward]) -> list[str]:
    if not forwards:
        return ["--tcp-ports", "none", "--udp-ports", "none"]
    found = version()
    if found < OLDEST_WITH_FORWARDS:
        raise MissingDependency(
            "the installed passt does not forward ports reliably (2023-03-09, or of no version)",
            hint='use backend = { type = "user", forwards = … }, or a newer passt',
        )
    options = []
    for forward in forwards:
        if not forward.host_port or forward.guest_address:
            raise UsageError("passt forwards fixed ports to the guest itself", hint="type = user")
        place = f"{forward.host_address}/" if forward.host_address else ""
        options += [
            f"--{forward.protocol}-ports",
            f"{place}{forward.host_port}:{forward.guest_port}",
        ]
    return options


def version() -> tuple[int, int, int]:
    """Return the date of the installed version. Raises MissingDependency."""
    said = run([find_program("passt"), "--version"], timeout=10, check=False)
    match = re.search(rb"(20\d\d)[_-]?(\d\d)[_-]?(\d\d)", said.stdout + said.stderr)
    if match is None:
        return (0, 0, 0)
    return int(match[1]), int(match[2]), int(match[3])
