"""What can be known to fail before QEMU is started, said in the user's words."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket

import msgspec

from wirt.errors import Busy, HostError, NotFound, UsageError
from wirt.image.storage.drive import is_block_device, names_cd_drive
from wirt.qemu.block import is_read_only
from wirt.spec.disk import Disk
from wirt.spec.machine import Machine
from wirt.spec.nic import Backend, Dgram, Forward, Nic, Stream, User
from wirt.store.layout import VmPaths
from wirt.units import format_size


def check_memory(machine: Machine) -> str:
    """Refuse memory beyond the host's; return a warning where little is left, or ``""``."""
    total, available = _host_memory()
    wanted = format_size(machine.memory)
    if machine.memory > total:
        raise HostError(
            f"{machine.name} wants {wanted} of memory, and the host has {format_size(total)}",
            hint=f"wirt set {machine.name} memory={format_size(total // 2 >> 28 << 28)}",
        )
    if machine.memory > available:
        return f"memory is short: {wanted} wanted, {format_size(available)} available"
    return ""


def _host_memory() -> tuple[int, int]:
    values: dict[str, int] = {}
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            key, rest = line.split(":", 1)
            if key in {"MemTotal", "MemAvailable"}:
                values[key] = int(rest.split()[0]) * 1024
    return values["MemTotal"], values["MemAvailable"]


def image_path(paths: VmPaths, disk: Disk) -> str:
    """Return the path of a disk's image: relative ones are the machine's own."""
    return os.path.join(paths.root, disk.image)


def check_images(paths: VmPaths, machine: Machine) -> None:
    """Refuse images that are missing or not readable. Raises NotFound, HostError."""
    for index, disk in enumerate(machine.disks):
        if not disk.image:
            continue
        path = image_path(paths, disk)
        if not os.path.exists(path):
            raise NotFound(
                f"the image of disks[{index}] is missing: {path}",
                hint=f"put it back, or change the disk: wirt edit {machine.name}",
            )
        reads = is_read_only(disk) or disk.discard_writes
        mode = os.R_OK if reads else os.R_OK | os.W_OK
        if not os.access(path, mode):
            need = "read" if mode == os.R_OK else "read and write"
            raise HostError(f"you may not {need} {path}", hint="check its owner and mode")
    for what in ("kernel", "initrd"):
        path = getattr(machine.boot, what)
        if path and not os.access(os.path.join(paths.root, path), os.R_OK):
            raise NotFound(f"the {what} cannot be read: {path}", hint="check boot." + what)


def host_devices(paths: VmPaths, machine: Machine) -> frozenset[str]:
    """Return the images that are block devices of the host, as the machine names them."""
    return frozenset(
        disk.image
        for disk in machine.disks
        if disk.image and is_block_device(image_path(paths, disk))
    )


def cd_drives(paths: VmPaths, machine: Machine) -> frozenset[str]:
    """Return those of them that are CD drives, which a guest can open and lock."""
    return frozenset(
        disk.image
        for disk in machine.disks
        if disk.media == "cdrom" and disk.image and names_cd_drive(image_path(paths, disk))
    )


def with_free_ports(machine: Machine) -> Machine:
    """Return ``machine`` with a free port in place of each 0. Raises Busy for a taken one."""
    nics = tuple(nic_with_ports(nic) for nic in machine.nics)
    return msgspec.structs.replace(machine, nics=nics)


def nic_with_ports(nic: Nic) -> Nic:
    """Do so for one card."""
    _require_free_address(nic.backend)
    if not isinstance(nic.backend, User) or not nic.backend.forwards:
        return nic
    forwards = tuple(_with_port(forward) for forward in nic.backend.forwards)
    backend = msgspec.structs.replace(nic.backend, forwards=forwards)
    return msgspec.structs.replace(nic, backend=backend)


def _require_free_address(backend: Backend) -> None:
    """Raise Busy for an address that another program has.

    QEMU itself binds those of ``stream`` and ``dgram`` late, and goes on without a wire.
    """
    if isinstance(backend, Stream) and backend.server and backend.address:
        address, kind = backend.address, socket.SOCK_STREAM
    elif isinstance(backend, Dgram) and backend.local and not _is_group(backend.remote):
        address, kind = backend.local, socket.SOCK_DGRAM
    else:
        return
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(kind == socket.SOCK_STREAM))
        try:
            probe.bind((host, int(port or 0)))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise Busy(
                    f"{address} is taken by another program",
                    hint=f"see which: ss -anp | grep {port}; or choose another",
                ) from error
            raise UsageError(f"{address} cannot be used: {error.strerror}") from error


def _is_group(address: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(address.rpartition(":")[0].strip("[]")).is_multicast
    return False


def _with_port(forward: Forward) -> Forward:
    kind = socket.SOCK_STREAM if forward.protocol == "tcp" else socket.SOCK_DGRAM
    family = socket.AF_INET6 if ":" in forward.host_address else socket.AF_INET
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((forward.host_address or "0.0.0.0", forward.host_port))  # noqa: S104 - as asked
        except OSError as error:
            raise _port_problem(forward, error) from error
        return msgspec.structs.replace(forward, host_port=probe.getsockname()[1])


def _port_problem(forward: Forward, error: OSError) -> Busy | HostError | UsageError:
    place = f"{forward.host_address}:{forward.host_port}/{forward.protocol}"
    if error.errno == errno.EADDRINUSE:
        return Busy(
            f"port {place} is taken by another program",
            hint=f"see which: ss -lpn sport = {forward.host_port}; or choose another with -p",
        )
    if error.errno == errno.EACCES:
        return HostError(f"port {place} needs root", hint="choose one from 1024 on")
    return UsageError(f"port {place} cannot be used: {error.strerror}")
