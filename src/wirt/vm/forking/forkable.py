"""What keeps a machine from being forked, snapshot with its memory or migrated, and how it is.

Known before the start from the description (``wirt check VM --can fork``), and asked of the
running QEMU before anything is touched.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from wirt.errors import WrongState
from wirt.protocols.qmp.client import QmpClient
from wirt.protocols.qmp.messages import MigrationCapability, MigrationInfo, StatusInfo
from wirt.qapi.capabilities import Capabilities
from wirt.qemu.nic import nic_id
from wirt.spec.console import CharBackend, Console, File, Null, Pty, Spice, UnixSocket, Vnc, Window
from wirt.spec.machine import Machine
from wirt.spec.nic import (
    Dgram,
    Network,
    Nic,
    Passt,
    Socket,
    Switch,
    Tap,
    Unplugged,
    User,
    Vde,
)
from wirt.store.layout import VmPaths
from wirt.store.record import Record
from wirt.vm.forking.disks import obstacles
from wirt.vm.forking.incoming import IGNORE_SHARED
from wirt.vm.state import tpm_is_lost

Action = Literal["fork", "snapshot", "migrate"]
ACTIONS: tuple[Action, ...] = ("fork", "snapshot", "migrate")
Method = Literal["freeze", "stream"]

_USB = {"host": "a device of this host", "audio": "a sound card", "wacom-tablet": "a tablet",
        "braille": "a Braille display"}  # fmt: skip
_FOREIGN = ("vfio", "virtfs", "virtio-9p", "ivshmem", "vhost-user", "nvdimm", "sev-guest")


class Problem(msgspec.Struct, frozen=True):
    """A device that stands in the way, and what can be done."""

    device: str
    cure: str


class Chosen(msgspec.Struct, frozen=True):
    """How a machine is frozen, and what the user should know about it."""

    method: Method
    notes: tuple[str, ...] = ()


def problems(paths: VmPaths, machine: Machine, action: Action) -> list[Problem]:
    """Return what the description alone says against ``action``."""
    found = [*_usb(machine), *_cpu(machine), *_foreign(machine), *_network_models(machine)]
    if action != "migrate":
        found += [Problem(*obstacle) for obstacle in obstacles(paths, machine)]
    if action == "fork":
        found += _networks(machine)
    return found


def _usb(machine: Machine) -> list[Problem]:
    return [
        Problem(f"usb.devices[{index}] is {_USB[device.kind]}, whose state QEMU cannot save",
                f"unplug it: wirt set {machine.name} usb.devices[{index}]=…, or wirt edit")
        for index, device in enumerate(machine.usb.devices)
        if device.kind in _USB
    ]  # fmt: skip


def _network_models(machine: Machine) -> list[Problem]:
    return [
        Problem(f"{nic_id(nic, index)} is a USB network card, whose state QEMU cannot save",
                f'nics[{index}].model = "virtio"')
        for index, nic in enumerate(machine.nics)
        if nic.model == "usb"
    ]  # fmt: skip


def _cpu(machine: Machine) -> list[Problem]:
    if "+invtsc" in machine.cpu.model or "invtsc=on" in machine.cpu.model:
        return [Problem("the CPU has invtsc, which ties it to this boot", "leave invtsc out")]
    return []


def _foreign(machine: Machine) -> list[Problem]:
    theirs = [
        Problem("qemu.args has a TPM, which serves one QEMU",
                f"wirt set {machine.name} tpm.version=2.0 makes one of the machine's own")
        for word in machine.qemu.args
        if word == "-tpmdev"
    ]  # fmt: skip
    return theirs + [
        Problem(f"qemu.args has {word[:60]!r}, whose state QEMU cannot save", "leave it out")
        for word in machine.qemu.args
        if any(name in word for name in _FOREIGN)
    ]


def _networks(machine: Machine) -> list[Problem]:
    return [
        Problem(
            f"{nic_id(nic, index)} is plugged into something that has room for one machine",
            "use a network that takes many: wirt network or switch, user, vde, a multicast socket",
        )
        for index, nic in enumerate(machine.nics)
        if not _takes_many(nic)
    ]


def _takes_many(nic: Nic) -> bool:
    match nic.backend:
        case User() | Unplugged() | Vde() | Network() | Switch() | Passt():
            return True
        case Tap():
            return not nic.backend.interface
        case Socket():
            return bool(nic.backend.multicast)
        case Dgram():
            return nic.backend.local == nic.backend.remote != ""
        case _:
            return False


def require_forkable(
    paths: VmPaths,
    machine: Machine,
    record: Record,
    qmp: QmpClient,
    capabilities: Capabilities,
    *,
    keep_process: bool,
    idle: bool,
) -> Chosen:
    """Return how to freeze a running machine; ``idle``: no command of wirt's runs in it.

    Raises WrongState with every obstacle.
    """
    found = problems(paths, machine, "fork")
    info = qmp.execute("query-migrate", reply=MigrationInfo)
    found += [Problem(f"QEMU says: {reason}", "unplug it") for reason in info.blocked_reasons]
    if tpm_is_lost(record):
        found.append(Problem("its TPM has ended", f"wirt restart {paths.name}"))
    if found:
        raise WrongState(
            f"{paths.name} cannot be forked: " + "; ".join(problem.device for problem in found),
            hint="; ".join(dict.fromkeys(problem.cure for problem in found)),
        )
    _require_settled(paths, qmp)
    why = "its process is kept" if keep_process else _not_frozen(machine, record, qmp)
    if not why and not idle:
        why = "a command runs in it"
    if why:
        return Chosen("stream", (f"{why}: {_copying(record, capabilities)}",))
    return Chosen("freeze")


def _require_settled(paths: VmPaths, qmp: QmpClient) -> None:
    status = qmp.execute("query-status", reply=StatusInfo).status
    if status not in {"running", "paused"}:
        raise WrongState(f"{paths.name} is {status}: it can be forked while it runs or is paused")


def _not_frozen(machine: Machine, record: Record, qmp: QmpClient) -> str:
    """Return why the machine cannot be handed over, so that its memory has to be copied."""
    if record.run is None or record.run.memory == "anonymous":
        return "it was started without forkable memory"
    if record.run.memory == "fork":
        return "it is a fork itself"
    if not _has_ignore_shared(qmp):
        return f"this QEMU has no {IGNORE_SHARED}"
    return not_handed_over(machine)


def loses_writes(accelerator: str, capabilities: Capabilities) -> bool:
    """True if memory cannot be copied while the guest runs.

    Before 9.0 QEMU's dirty log misses writes of an emulated guest (its commit 03bfc2188f06
    mends that): the copy would be torn.
    """
    return accelerator == "tcg" and capabilities.version < (9, 0, 0)


def _copying(record: Record, capabilities: Capabilities) -> str:
    if record.run is not None and loses_writes(record.run.accelerator, capabilities):
        return "it stands still while its memory is copied (QEMU before 9.0, without KVM)"
    return "the memory is copied while it runs"


def _has_ignore_shared(qmp: QmpClient) -> bool:
    known = qmp.execute("query-migrate-capabilities", reply=list[MigrationCapability])
    return any(one.capability == IGNORE_SHARED for one in known)


def not_handed_over(machine: Machine) -> str:
    """Return what a second QEMU could not take over while the first still has it."""
    for index, nic in enumerate(machine.nics):
        alone = isinstance(nic.backend, Tap | Passt)  # a descriptor
        if alone or not _takes_many(nic):
            return f"{nic_id(nic, index)} holds its end of a network"
    for display in machine.displays:
        if isinstance(display, Spice | Window) or display.listen != "unix":
            return "its display is a window or a port of this host"
    backends = [port.backend for port in machine.serials]
    for backend in (*backends, *(port.backend for port in machine.channels)):
        if not isinstance(backend, Console | Pty | Null) and backend != UnixSocket():
            return "a serial port or channel is a file or a port of this host"
    return ""


def private_copy(machine: Machine) -> tuple[Machine, tuple[str, ...]]:
    """Return the description without what only one machine can have, and what was changed.

    Serial ports to files and ports of the host become consoles, displays on ports of the
    host unix sockets; forwarded ports are new ones.
    """
    notes = []
    displays = tuple(_private_display(display) for display in machine.displays)
    if displays != machine.displays:
        notes.append("its screen is at its own unix socket")
    serials = tuple(
        msgspec.structs.replace(serial, backend=_private_backend(serial.backend))
        for serial in machine.serials
    )
    if serials != machine.serials:
        notes.append("its serial ports are consoles (wirt console)")
    channels = tuple(
        msgspec.structs.replace(port, backend=_private_channel(port.backend))
        for port in machine.channels
    )
    if channels != machine.channels:
        notes.append("its channels are at its own unix sockets")
    nics = tuple(_private_forwards(nic) for nic in machine.nics)
    made = msgspec.structs.replace(
        machine, displays=displays, serials=serials, channels=channels, nics=nics, autostart=False
    )
    return made, tuple(notes)


def _private_display(display: Vnc | Spice | Window) -> Vnc | Spice | Window:
    if isinstance(display, Window):
        return Vnc()
    return msgspec.structs.replace(display, listen="unix")


def _private_backend(backend: CharBackend) -> CharBackend:
    if isinstance(backend, Console | Pty | Null) or backend == UnixSocket():
        return backend
    return Console()


def _private_channel(backend: CharBackend) -> CharBackend:
    if isinstance(backend, Null) or backend == UnixSocket():
        return backend
    return Null() if isinstance(backend, File) else UnixSocket()


def _private_forwards(nic: Nic) -> Nic:
    if not isinstance(nic.backend, User | Passt) or not nic.backend.forwards:
        return nic
    forwards = tuple(
        msgspec.structs.replace(forward, host_port=0) for forward in nic.backend.forwards
    )
    backend = msgspec.structs.replace(nic.backend, forwards=forwards)
    return msgspec.structs.replace(nic, backend=backend)
