"""What the host decides about a machine that its description leaves open."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Runtime:
    """Facts of one start.

    ``socket`` names a socket in the machine's runtime directory (``qmp``, ``serial0``, the
    name of a channel, ``vnc0`` …). ``fd_paths`` maps the image path of a disk to a
    descriptor that QEMU inherits instead of opening the path. ``memory_file`` backs the
    guest's memory, ``memory_shared`` writing through to it.
    """

    accelerator: str
    directory: str
    socket: Callable[[str], str]
    firmware_code: str = ""
    uefi_variables: str = ""
    fd_paths: Mapping[str, int] = field(default_factory=dict)
    memory_file: str = ""
    memory_shared: bool = False
    incoming: bool = False
    paused: bool = False
    sandbox: bool = True
    vmgenid: str = "auto"

    def path(self, path: str) -> str:
        """Return ``path``, relative to the machine's directory, as an absolute one."""
        return os.path.join(self.directory, path)
