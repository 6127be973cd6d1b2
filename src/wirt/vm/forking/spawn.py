"""A machine made of a state: it goes on where the frozen one stood still, copy-on-write.

1. a directory without a name: overlays, description, a record that says ``unborn``; 2. it gets
its name; 3. QEMU starts in it and loads the state; 4. the new identity lies before the guest;
5. the guest runs, the record says so. Killed before the record does, the machine is removed by
the next command: nobody was told of it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import msgspec

from wirt.host.failpoint import failpoint
from wirt.host.process import detach
from wirt.host.process_id import ProcessId
from wirt.spec import toml
from wirt.spec.machine import Machine
from wirt.spec.nic import Backend, Nic
from wirt.store.atomic import host_error, write_file
from wirt.store.layout import VmPaths
from wirt.store.locks import take_run_lock
from wirt.store.machines import Making, making, remove_machine
from wirt.store.record import Record, Run, write_record
from wirt.store.states import State, using
from wirt.vm import preflight, state
from wirt.vm.context import Context
from wirt.vm.description import summarise
from wirt.vm.forking.disks import make_overlay
from wirt.vm.forking.forkable import private_copy
from wirt.vm.forking.identity import (
    IDENTITY_SECONDS,
    await_answer,
    due_identity,
    identity_of,
    is_shared_wire,
    lay_before,
    with_kept,
)
from wirt.vm.forking.incoming import Ground, Incoming, begin_incoming, ground_of
from wirt.vm.forking.outcome import Outcome
from wirt.vm.fresh import random_mac, random_uuid
from wirt.vm.keeping import start_keeper
from wirt.vm.network.uplinks import make_uplinks, open_forwards, release_all
from wirt.vm.ownership import choose_uid, give, make_runtime
from wirt.vm.session import HelperPort
from wirt.vm.start import for_our_kernel
from wirt.vm.tpm import copy_state, with_tpm


class Wish(msgspec.Struct, frozen=True):
    """How the machine shall differ from the frozen one.

    ``same_identity`` keeps UUID, host name, machine-id and network addresses: for a lab that
    nothing outside sees. ``paused``: it does not run yet. ``temporary``: removed when this
    process has ended. ``reboots`` False leaves out the kernel that is booted directly, which
    saves memory in a machine that will not start it again. ``networks`` plugs cards into other
    networks: index of the card → backend. ``pool``: it waits there, paused. ``keep_port``: the
    port by which the guest got its identity stays open, for a command; the caller closes it.
    """

    same_identity: bool = False
    paused: bool = False
    temporary: bool = False
    reboots: bool = True
    networks: Mapping[int, Backend] = msgspec.field(default_factory=dict)
    pool: str = ""
    keep_port: bool = False


AS_USUAL = Wish()


class Spawned(msgspec.Struct, frozen=True):
    """A machine that runs. Times in seconds."""

    name: str
    running: float
    """From the call until the guest ran."""
    forwards: tuple[tuple[str, int, int], ...] = ()
    identity: Outcome = Outcome()
    notes: tuple[str, ...] = ()
    port: HelperPort | None = None
    """The guest's helper, that answered; only if it was asked for."""


def nothing() -> None:
    """Do nothing meanwhile."""


def spawn_from(
    context: Context,
    state: State,
    name: str,
    wish: Wish = AS_USUAL,
    *,
    meanwhile: Callable[[], None] = nothing,
) -> Spawned:
    """Make the machine ``name`` of a state, and return when its guest says who it is.

    ``meanwhile`` is called when its QEMU is starting. Raises AlreadyExists, MissingDependency
    and HostError (another QEMU or CPU), NoSpace, QemuError; then there is no machine.
    """
    with using(context.home, state.id) as known:
        memory = "" if known.manifest.in_devices else known.memory
        ground = ground_of(context, known.paths, known.manifest, memory)
        with born(context, ground, name, wish) as birth:
            meanwhile()
            birth.load()
            birth.run()
        return birth.settle()


@contextmanager
def born(context: Context, ground: Ground, name: str, wish: Wish) -> Iterator[Birth]:
    """Yield a machine whose QEMU is starting; to be loaded and run within the block."""
    with making(context.home, name) as made:
        birth = Birth(context, ground, made, wish)
        try:
            yield birth
        except BaseException:
            birth.undo()
            raise


class Birth:
    """One machine on its way from a state to a guest that runs."""

    def __init__(self, context: Context, ground: Ground, made: Making, wish: Wish) -> None:
        self.context = context
        self.ground = ground
        self.wish = wish
        self._made = made
        self._began = time.monotonic()
        self._running = 0.0
        self._port: HelperPort | None = None
        manifest = ground.manifest
        spec, self._notes = self._describe()
        self._record = record_of(context, ground, wish)
        self._fill(spec)
        self._machine = self._to_start(spec)
        same = wish.same_identity
        self._due = due_identity(manifest.machine, spec, manifest.guest, same=same)
        self._identity = identity_of(self._due, spec)
        self._uplinks = make_uplinks(context, self._machine)
        try:
            self._incoming = self._begin()
        except BaseException:
            self._unmake()
            raise
        finally:
            self._uplinks.close()

    def _describe(self) -> tuple[Machine, tuple[str, ...]]:
        return describe(self.ground, self._made.name, self.wish)

    def _to_start(self, spec: Machine) -> Machine:
        return preflight.with_free_ports(spec)

    def _for_qemu(self) -> Machine:
        return self._machine if self.wish.reboots else _without_kernel(self._machine)

    def _take_name(self) -> VmPaths:
        return self._made.publish()

    def _fill(self, spec: Machine) -> None:
        paths = self._made.paths
        lay_disks(self.ground, paths, spec, durable=not self.wish.temporary)
        text = toml.dump(spec, explained=not self.wish.temporary)
        write_file(paths.spec, text.encode(), durable=False)
        summary = summarise(paths, spec)
        self._record = msgspec.structs.replace(
            self._record, summary=summary, phase="starting", unborn=True
        )
        write_record(paths.record, self._record, durable=False)
        failpoint("child-filled")

    def _begin(self) -> Incoming:
        paths, record = self._made.paths, self._record
        write_file(paths.started, msgspec.json.encode(self._machine), durable=False)
        give(paths, record)
        paths = self._take_name()
        failpoint("child-published")
        make_runtime(paths, record)
        machine = for_our_kernel(self._for_qemu(), record, self.ground.manifest.accelerator)
        lock = take_run_lock(paths.run_lock)
        try:
            return begin_incoming(
                self.ground, paths, machine, record, [lock], paths.socket, paths.tpm, self._uplinks
            )
        finally:
            os.close(lock)

    def load(self) -> None:
        """Load the state. Raises QemuError."""
        failpoint("child-begun")
        lacks_memory = self.ground.manifest.method == "freeze"
        self._incoming.load(self.ground.state.devices, shared=lacks_memory)
        failpoint("child-loaded")

    def run(self) -> None:
        """Let the guest run, unless it shall be paused."""
        process = ProcessId.of(self._incoming.starting.process.pid)
        if process is None:
            raise self._incoming.refusal()
        paths = self._made.paths
        self._record = msgspec.structs.replace(
            self._record,
            phase="running",
            run=self._life(process),
            unborn=False,
            identity_due=self._due if self.wish.paused else None,
        )
        if not self.wish.paused:
            self._port = lay_before(paths, self._machine, self._identity)
            self._incoming.qmp.execute("cont")
        self._running = time.monotonic() - self._began
        failpoint("child-runs")
        write_record(paths.record, self._record)
        self._keep(paths)

    def _life(self, process: ProcessId) -> Run:
        manifest = self.ground.manifest
        life = Run(
            pid=process.pid,
            start_ticks=process.start_ticks,
            boot_id=state.boot_id(),
            started=time.time(),
            accelerator=manifest.accelerator,
            accelerator_reason=f"as the state {self.ground.state.id} was frozen with it",
            argv=tuple(self._incoming.argv),
            paused_on_request=self.wish.paused,
            forwards=open_forwards(self._machine.nics),
            wires=tuple(self._uplinks.wires),
            memory="anonymous" if manifest.in_devices else "fork",
        )
        return with_tpm(life, self._incoming.starting.tpm)

    def _keep(self, paths: VmPaths) -> None:
        incoming = self._incoming
        devices = {name: console.fileno() for name, console in incoming.consoles.items()}
        messages = incoming.launched.messages_fd if incoming.launched else None
        start_keeper(paths, self._record, sorted(devices), messages, devices=devices)
        incoming.release()
        detach(incoming.starting.process)

    def undo(self) -> None:
        """Leave nothing of a machine that failed on its way."""
        self._close_port()
        self._incoming.end()
        self._unmake()

    def _unmake(self) -> None:
        release_all(self.context, self._made.name, self._uplinks.wires)
        if self._made.published:
            remove_machine(self.context.home, self._made.paths)

    def settle(self) -> Spawned:
        """Return when the guest has said who it is."""
        paths = self._made.paths
        kept = False
        try:
            outcome = Outcome() if self.wish.paused else self._become(paths)
            kept = self.wish.keep_port and outcome.by == "helper"
        finally:
            if not kept:
                self._close_port()
        return Spawned(
            name=paths.name,
            running=self._running,
            forwards=self._record.run.forwards if self._record.run else (),
            identity=outcome,
            notes=self._notes,
            port=self._port,
        )

    def _become(self, paths: VmPaths) -> Outcome:
        outcome = await_answer(
            self._port, paths, self._due, self._identity, timeout=IDENTITY_SECONDS
        )
        return with_kept(outcome, self._machine, same=self.wish.same_identity)

    def _close_port(self) -> None:
        if self._port is not None:
            self._port.close()
            self._port = None


def lay_disks(ground: Ground, paths: VmPaths, spec: Machine, *, durable: bool = True) -> None:
    """Make the overlays of a new machine; copy UEFI variables and TPM, if it had any yet."""
    for disk in ground.manifest.disks:
        if not disk.shared:
            target = os.path.join(paths.root, spec.disks[disk.index].image)
            make_overlay(target, disk, ground.state, durable=durable)
    try:
        if os.path.exists(ground.state.uefi_variables):
            shutil.copyfile(ground.state.uefi_variables, paths.uefi_variables)
    except OSError as error:
        raise host_error(error, paths.uefi_variables) from error
    if os.path.isdir(ground.state.tpm):
        copy_state(ground.state.tpm, paths.tpm)


def describe(ground: Ground, name: str, wish: Wish) -> tuple[Machine, tuple[str, ...]]:
    """Return the description of a machine made of a state, and what had to be changed."""
    machine, notes = private_copy(ground.manifest.machine)
    uuid = machine.uuid if wish.same_identity and machine.uuid else random_uuid()
    nics = tuple(_card(nic, wish, index) for index, nic in enumerate(machine.nics))
    disks = list(machine.disks)
    for disk in ground.manifest.disks:
        if disk.shared:
            image = os.path.join(ground.state.root, disk.file)
            disks[disk.index] = msgspec.structs.replace(disks[disk.index], image=image)
    made = msgspec.structs.replace(machine, name=name, uuid=uuid, nics=nics, disks=tuple(disks))
    return made, notes


def _card(nic: Nic, wish: Wish, index: int) -> Nic:
    nic = msgspec.structs.replace(nic, backend=wish.networks.get(index, nic.backend))
    if wish.same_identity or not is_shared_wire(nic):
        return nic
    return msgspec.structs.replace(nic, mac=random_mac())


def _without_kernel(machine: Machine) -> Machine:
    boot = msgspec.structs.replace(machine.boot, kernel="", initrd="", cmdline="")
    return msgspec.structs.replace(machine, boot=boot)


def record_of(context: Context, ground: Ground, wish: Wish) -> Record:
    """Return the record of a machine that stands on a state, before it has run."""
    manifest = ground.manifest
    owner = ProcessId.of(os.getpid()) if wish.temporary else None
    uid = choose_uid(context.home)
    return Record(
        created=time.time(),
        image=manifest.image,
        image_id=manifest.image_id,
        guest_user=manifest.guest_user,
        uid=uid,
        group=_group(ground) if uid else 0,
        temporary=wish.temporary,
        owner_pid=owner.pid if owner else 0,
        owner_start_ticks=owner.start_ticks if owner else 0,
        state=ground.state.id,
        pool=wish.pool,
    )


def _group(ground: Ground) -> int:
    """Return the gid that may read the state's files."""
    files = [ground.state.devices]
    files += [os.path.join(ground.state.root, disk.file) for disk in ground.manifest.disks]
    return next((os.stat(file).st_gid for file in files if os.path.exists(file)), 0)
