"""What the host decides about a machine that its description leaves open."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping

import msgspec

from wirt.errors import HostError
from wirt.qapi.value import QapiObject

_LONGEST_UNIX_PATH = 107


class Served(msgspec.Struct, frozen=True):
    """An image that wirt serves to QEMU as a plain disk, over NBD on a unix socket."""

    socket: str
    export: str
    below: bool = False
    """It is not the disk's own image, but the one that its overlay names."""


class Runtime(msgspec.Struct, frozen=True):
    """Facts of one start.

    ``accelerator`` is ``kvm`` or ``tcg``. ``directory`` is the machine's: relative paths
    are resolved against it. ``socket`` names a socket in the machine's runtime directory
    (``qmp``, ``serial0``, the name of a channel, ``vnc0`` …). ``fd_paths`` maps the image
    path of a disk, as the spec has it, to a descriptor that QEMU inherits instead of opening
    the path; ``host_devices`` are those image paths that are devices of the host, where the
    path does not show it, and ``cd_drives`` those that are CD drives. ``overlays``
    maps the index of a disk whose writes are discarded to an empty qcow2 image of the same
    virtual size, which the caller makes for each start.
    ``served`` maps the index of a disk to the image of it that QEMU does not open by itself.
    ``uplinks`` maps the id of a netdev (``nic0-net``) to the backend that the host has made
    for it: a TAP as descriptor, the path of a switch.
    An ``attended`` QEMU belongs to the person who started it: no QMP socket of wirt's, and
    messages without time stamps.
    ``memory_file`` backs the guest's memory, with ``memory_shared`` writing through to it.
    ``tpm_fd`` is a descriptor that is connected to the TPM; -1: QEMU connects to the socket
    ``tpm``.
    ``socket_fds`` has descriptors that listen already, by the names that ``socket`` takes.
    """

    accelerator: str
    directory: str
    socket: Callable[[str], str]
    firmware_code: str = ""
    uefi_variables: str = ""
    fd_paths: Mapping[str, int] = msgspec.field(default_factory=dict)
    host_devices: Collection[str] = ()
    cd_drives: Collection[str] = ()
    overlays: Mapping[int, str] = msgspec.field(default_factory=dict)
    served: Mapping[int, Served] = msgspec.field(default_factory=dict)
    uplinks: Mapping[str, QapiObject] = msgspec.field(default_factory=dict)
    memory_file: str = ""
    memory_shared: bool = False
    socket_fds: Mapping[str, int] = msgspec.field(default_factory=dict)
    tpm_fd: int = -1
    incoming: bool = False
    paused: bool = False
    sandbox: bool = True
    attended: bool = False
    vmgenid: str = "auto"

    def path(self, path: str) -> str:
        """Return ``path``, relative to the machine's directory, as an absolute one."""
        return os.path.join(self.directory, path)


def unix_path(path: str) -> str:
    """Return ``path`` if a unix socket can have it (107 bytes, unix(7)), else HostError."""
    if len(os.fsencode(path)) > _LONGEST_UNIX_PATH:
        raise HostError(
            f"the socket path is too long: {path}",
            hint=f"at most {_LONGEST_UNIX_PATH} bytes: use a shorter XDG_RUNTIME_DIR or name",
        )
    return path
