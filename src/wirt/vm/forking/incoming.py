"""A QEMU that takes over what another one saved: started early, loaded later.

Starting a process and making a machine takes ten times as long as loading a state, so it is
done before the machine that is frozen stands still.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from wirt.errors import HostError, MissingDependency, PeerClosed, QemuError, WirtError
from wirt.host.filehash import sha256_of
from wirt.host.qemu_probe import probe
from wirt.protocols.qmp.client import QmpClient
from wirt.protocols.qmp.messages import MigrationInfo
from wirt.qapi.capabilities import Capabilities
from wirt.qemu.machine import READ_ONLY_BASE, cpu_model
from wirt.qemu.nic import unplugged_links
from wirt.qemu.runtime import Runtime
from wirt.spec.machine import Machine
from wirt.store.layout import StatePaths, VmPaths
from wirt.store.record import Record
from wirt.store.states import Manifest, QemuFacts
from wirt.vm import firmware, ownership, preflight
from wirt.vm.context import Context
from wirt.vm.forking.identity import is_shared_wire
from wirt.vm.keeping import console_names
from wirt.vm.launch import Launched, Starting, begin, last_words
from wirt.vm.network.uplinks import Uplinks
from wirt.vm.sockets import Sockets, listen_all, names
from wirt.vm.start import DEFAULT_BINARY, QMP_SECONDS, command_line
from wirt.vm.tpm import joined

IGNORE_SHARED = "x-ignore-shared"
LOAD_SECONDS = 120.0
_STATE_FD = "state"


class Incoming(msgspec.Struct):
    """A QEMU that was begun for a machine, and what it listens on."""

    machine: Machine
    argv: list[str]
    starting: Starting
    socket_of: Callable[[str], str]
    consoles: dict[str, socket.socket] = msgspec.field(default_factory=dict)
    launched: Launched | None = None

    @property
    def qmp(self) -> QmpClient:
        """Its QMP connection, made when first needed. Raises QemuError, Timeout."""
        if self.launched is None:
            self.launched = self.starting.connect(self.socket_of("qmp"), timeout=QMP_SECONDS)
        return self.launched.qmp

    def load(self, devices: str, *, shared: bool) -> None:
        """Load the device state; the memory is there already if it is ``shared``.

        Where nobody else is on the network, the guest's cards need not say where they are now:
        several programs of the guest wake up for that. Raises QemuError with QEMU's own words.
        """
        qmp = self.qmp
        try:
            set_capabilities(qmp, shared=shared)
            if not any(map(is_shared_wire, self.machine.nics)):
                qmp.execute("migrate-set-parameters", {"announce-rounds": 0})
            fd = os.open(devices, os.O_RDONLY | os.O_CLOEXEC)
            try:
                qmp.send_fd(_STATE_FD, fd)
            finally:
                os.close(fd)
            qmp.execute("migrate-incoming", {"uri": f"fd:{_STATE_FD}"})
            await_migration(qmp, timeout=LOAD_SECONDS)
            set_capabilities(qmp, shared=False)
            for link in unplugged_links(self.machine.nics):
                qmp.execute("set_link", link)
        except PeerClosed as error:
            raise self.refusal() from error

    def refusal(self) -> WirtError:
        """Return why QEMU has ended, in its own words."""
        words = last_words(self.launched) if self.launched else QemuError("QEMU has ended")
        return QemuError(
            f"QEMU did not take the frozen state: {words.message}",
            hint="a device that was plugged in after the start? compare wirt show --argv",
        )

    def end(self) -> None:
        """Undo everything: nothing of the guest has run in it."""
        self._close_consoles()
        if self.launched is not None:
            self.launched.kill()
            self.launched.close()
        else:
            self.starting.end()

    def release(self) -> None:
        """Let go of a QEMU that others look after now."""
        self._close_consoles()
        if self.launched is not None:
            self.launched.close()

    def _close_consoles(self) -> None:
        for console in self.consoles.values():
            console.close()
        self.consoles.clear()


def set_capabilities(qmp: QmpClient, *, shared: bool) -> None:
    """Prepare a migration whose end is told by an event. ``shared``: without the memory."""
    wanted = [{"capability": "events", "state": True}]
    wanted.append({"capability": IGNORE_SHARED, "state": shared})
    qmp.execute("migrate-set-capabilities", {"capabilities": wanted})


def await_migration(qmp: QmpClient, *, timeout: float) -> None:
    """Return when a migration is complete. Raises QemuError, PeerClosed, Timeout."""
    while True:
        event = qmp.wait_event(["MIGRATION"], timeout=timeout)
        status = event.data_as(dict).get("status")
        if status == "completed":
            return
        if status in {"failed", "cancelled"}:
            info = qmp.execute("query-migrate", reply=MigrationInfo)
            raise QemuError(f"QEMU could not save the machine: {info.error_desc or status}")


class Ground(msgspec.Struct, frozen=True):
    """What a machine is started upon: the state's files and the host's means."""

    state: StatePaths
    manifest: Manifest
    memory: str
    """The file to map; "": the memory comes with the devices."""
    capabilities: Capabilities

    @property
    def reads_only(self) -> bool:
        """True if this QEMU maps memory that it may not write."""
        return self.capabilities.version >= READ_ONLY_BASE


def ground_of(context: Context, state: StatePaths, manifest: Manifest, memory: str) -> Ground:
    """Return what to start upon. Raises MissingDependency if it is another QEMU."""
    binary = manifest.machine.qemu.binary or DEFAULT_BINARY
    capabilities = probe(binary, context.home.cache)
    if qemu_facts(context, capabilities) != manifest.qemu:
        was = ".".join(map(str, manifest.qemu.version))
        raise MissingDependency(
            f"state {state.id} was saved by another QEMU than this host has now "
            f"({was} {manifest.qemu.package})".rstrip(),
            hint="install that one again, or start its machines anew: wirt start",
        )
    return Ground(state, manifest, memory, capabilities)


def qemu_facts(context: Context, capabilities: Capabilities) -> QemuFacts:
    """Return which QEMU this is, to the byte."""
    path = capabilities.identity.path
    try:
        digest = sha256_of(path, context.home.cache)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}") from error
    return QemuFacts(capabilities.version, capabilities.package, path, digest)


def require_same_cpu(machine: Machine, manifest: Manifest) -> None:
    """Refuse another CPU: QEMU would accept it, and the guest hang. Raises HostError."""
    model = cpu_model(machine, manifest.accelerator)
    if model != manifest.cpu:
        raise HostError(
            f"the state was saved on the CPU {manifest.cpu}, and {machine.name} has {model}",
            hint=f'cpu.model = "{manifest.cpu}"',
        )


def begin_incoming(
    ground: Ground,
    paths: VmPaths,
    machine: Machine,
    record: Record,
    inherit: list[int],
    socket_of: Callable[[str], str],
    tpm_directory: str,
    uplinks: Uplinks | None = None,
) -> Incoming:
    """Start QEMU for ``machine``, waiting for a state. ``socket_of`` names its sockets.

    ``tpm_directory`` is for its TPM, ``uplinks`` are the host's ends of its cards.
    """
    links = uplinks or Uplinks()
    require_same_cpu(machine, ground.manifest)
    opened = ownership.descriptors_needed(paths, machine, record)
    sockets = Sockets({})
    try:
        sockets = listen_all(names(machine), socket_of, record.uid)
        images = {image: fd for image, (fd, _) in opened.items()}
        runtime = _runtime(ground, paths, machine, sockets, socket_of)
        runtime = replace(runtime, fd_paths=images, uplinks=links.values)
        fds = [*inherit, *images.values(), *links.fds, *sockets.fds.values()]
        with joined(machine, tpm_directory, record) as tpm:
            runtime = replace(runtime, tpm_fd=tpm.qemu_fd if tpm else -1)
            line = command_line(machine, runtime, ground.capabilities, record)
            starting = begin(line, fds, tpm)
    finally:
        sockets.close()
        ownership.close_all(opened)
    incoming = Incoming(machine, line, starting, socket_of)
    try:
        _connect_consoles(incoming)
    except BaseException:
        incoming.end()
        raise
    return incoming


def _connect_consoles(incoming: Incoming) -> None:
    """Be the client of each console from the first byte on; the keeper gets the connection."""
    for name in console_names(incoming.machine):
        console = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        incoming.consoles[name] = console
        with contextlib.suppress(OSError):  # QEMU has ended already: its words say why
            console.connect(incoming.socket_of(name))


def _runtime(
    ground: Ground,
    paths: VmPaths,
    machine: Machine,
    sockets: Sockets,
    socket_of: Callable[[str], str],
) -> Runtime:
    files = firmware.find(machine.firmware)
    return Runtime(
        accelerator=ground.manifest.accelerator,
        directory=paths.root,
        socket=socket_of,
        firmware_code=files.code if files else "",
        uefi_variables=paths.uefi_variables if files else "",
        host_devices=preflight.host_devices(paths, machine),
        cd_drives=preflight.cd_drives(paths, machine),
        memory_file=ground.memory,
        socket_fds=sockets.fds,
        incoming=True,
        paused=True,
    )
