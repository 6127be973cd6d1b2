"""Freezing a running machine into a state, from which it and its forks go on.

The memory is not copied: the file that the machine ran on becomes the state's, and a second
QEMU, started beside the first and loaded while the guest stands still, maps it privately::

    names, overlays, journal │ second QEMU starts │ stop ─ save ─ load ─ decide ─ cont │ finish
                             (the guest runs)     └────────── the pause ───────────────┘

The second gets ports and TAPs of its own on the networks that the first is plugged into. A
machine that cannot be handed over (its memory is not in a file, a command runs in it, its
network is a device of the host's) stays in its QEMU: see ``wirt.vm.forking.stream``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time

import msgspec

from wirt.errors import NoSpace, PeerClosed, QemuError, WirtError, WrongState
from wirt.host.failpoint import failpoint
from wirt.host.process import detach
from wirt.host.process_id import ProcessId
from wirt.host.qemu_probe import probe
from wirt.protocols.qmp.client import QmpClient
from wirt.protocols.qmp.messages import StatusInfo
from wirt.qemu.netdev import forward_text
from wirt.qemu.nic import nic_id
from wirt.spec.machine import Machine
from wirt.spec.nic import User
from wirt.store.atomic import host_error
from wirt.store.layout import StatePaths, VmPaths
from wirt.store.locks import join_run_lock
from wirt.store.machines import locked
from wirt.store.record import Handover, Record, write_record
from wirt.store.states import Manifest, new_state, sweep_states
from wirt.units import MIB
from wirt.vm import state
from wirt.vm.block_jobs import end_jobs
from wirt.vm.context import Context
from wirt.vm.description import load_started
from wirt.vm.forking.disks import (
    freeze_variables,
    let_family_read,
)
from wirt.vm.forking.forkable import require_forkable
from wirt.vm.forking.guest import ports_taken
from wirt.vm.forking.handover import clear_beside, finish, recover, take_names, undo
from wirt.vm.forking.incoming import (
    Incoming,
    await_migration,
    begin_incoming,
    ground_of,
    set_capabilities,
)
from wirt.vm.forking.instant import Instant
from wirt.vm.forking.source import Frozen, Source
from wirt.vm.forking.stream import Copying
from wirt.vm.monitor import connect
from wirt.vm.network.uplinks import Uplinks, make_uplinks
from wirt.vm.start import DEFAULT_BINARY, for_our_kernel
from wirt.vm.tpm import with_tpm

SAVE_SECONDS = 120.0
_SHORT = MIB
UNLIMITED = 1 << 40
"""Bytes a second; QEMU's own limit would make the guest wait."""


def freeze(
    context: Context,
    name: str,
    *,
    keep_process: bool = False,
    label: str = "",
    instant: Instant | None = None,
) -> Frozen:
    """Freeze a running machine, which goes on; return the state.

    ``label`` holds the state (``wirt.store.states.hold``); without one this process does,
    until it ends or releases ``process_label()``: then the memory goes, and with the last
    machine that stands on it, the state.

    With ``keep_process`` it goes on in the same QEMU: open connections and running commands
    live on, and the memory is copied. ``instant`` is shared with the other machines that are
    frozen together. Raises WrongState, naming device and cure, before anything is touched.
    """
    with locked(context.home, name, waiting=context.say) as paths:
        return freeze_locked(
            context, paths, keep_process=keep_process, label=label, instant=instant
        )


def freeze_locked(
    context: Context,
    paths: VmPaths,
    *,
    keep_process: bool = False,
    label: str = "",
    instant: Instant | None = None,
) -> Frozen:
    """The same for a machine whose lock the caller holds."""
    record = recover(context, paths)
    state.require_running(paths)
    sweep_states(context.home)
    clear_beside(paths)
    machine = as_it_runs(load_started(paths), record)
    with connect(paths, record) as qmp, ports_taken(paths) as idle, new_state(context.home) as made:
        end_jobs(qmp)
        capabilities = probe(machine.qemu.binary or DEFAULT_BINARY, context.home.cache)
        chosen = require_forkable(
            paths, machine, record, qmp, capabilities, keep_process=keep_process, idle=idle
        )
        for note in chosen.notes:
            context.say(note)
        record = msgspec.structs.replace(record, group=record.group or record.uid)
        source = Source(
            context, paths, machine, record, qmp, made, chosen.notes, label, instant or Instant()
        )
        uplinks = _second_uplinks(context, machine) if chosen.method == "freeze" else None
        if uplinks is None:
            return Copying(source).run()
        with contextlib.closing(uplinks):
            return _HandingOver(source, uplinks).run()


def _second_uplinks(context: Context, machine: Machine) -> Uplinks | None:
    """Return another port or TAP for each card; None if there is no room for them."""
    try:
        return make_uplinks(context, machine, beside=True)
    except WirtError as error:
        context.say(f"it stays in its QEMU, and its memory is copied: {error.message}")
        return None


def as_it_runs(machine: Machine, record: Record) -> Machine:
    """Return the description with the cards' networks of now. Raises WrongState.

    A card that came or went after the start stands where no fork would have it.
    """
    wires = record.run.wires if record.run else ()
    if not wires:
        return machine
    now = tuple(wire.nic for wire in wires)
    same = [(nic_id(nic, index), nic.model) for index, nic in enumerate(machine.nics)]
    if [(nic_id(nic, index), nic.model) for index, nic in enumerate(now)] != same:
        raise WrongState(
            f"network cards of {machine.name} were plugged or unplugged after its start",
            hint=f"wirt restart {machine.name}",
        )
    return msgspec.structs.replace(machine, nics=now)


class _HandingOver:
    """One freeze by handing the machine over to a second QEMU, step by step."""

    def __init__(self, source: Source, uplinks: Uplinks) -> None:
        self.source = source
        self.record = source.record
        self._uplinks = uplinks
        self.clock = 0.0
        self.pause = 0.0

    def run(self) -> Frozen:
        """Freeze; on any error the first QEMU runs on and no trace stays."""
        source = self.source
        manifest = source.describe("freeze")
        failpoint("disks-linked")
        incoming = None
        try:
            self._journal(source.make_overlays(manifest))
            incoming = self._begin(manifest)
            failpoint("second-begun")
            self._hand_over(incoming)
        except BaseException:
            if incoming is not None:
                incoming.end()
            if self.record.handover is None:
                clear_beside(source.paths)
            elif not self.record.handover.decided:
                undo(source.context, source.paths, self.record, qmp=source.qmp)
            raise
        try:
            self._finish(incoming)
        finally:
            incoming.release()
        state = source.publish(manifest, clock=self.clock, pause=self.pause)
        return Frozen(state, self.pause, "freeze", source.notes)

    def _journal(self, images: tuple[tuple[str, str], ...]) -> None:
        source = self.source
        second = msgspec.structs.replace(
            source.run, pid=0, start_ticks=0, tpm_pid=0, tpm_start_ticks=0, memory="fork"
        )
        handover = Handover(source.made.id, images, second)
        self.record = msgspec.structs.replace(self.record, handover=handover)
        write_record(source.paths.record, self.record)
        failpoint("journaled")
        take_names(source.paths, handover)

    def _begin(self, manifest: Manifest) -> Incoming:
        source = self.source
        paths, record = source.paths, self.record
        os.link(paths.memory, source.made.memory)
        ground = ground_of(source.context, source.made, manifest, source.made.memory)
        let_family_read(ground.memory, record, write=not ground.reads_only)
        for stale in (paths.next_runtime, paths.next_tpm):
            shutil.rmtree(stale, ignore_errors=True)
        os.mkdir(paths.next_runtime, 0o700)
        if record.uid:
            os.chown(paths.next_runtime, record.uid, record.uid)
        lock = join_run_lock(paths.run_lock)
        try:
            machine = for_our_kernel(
                without_forwards(manifest.machine), record, manifest.accelerator
            )
            return begin_incoming(
                ground,
                paths,
                machine,
                record,
                [lock],
                paths.next_socket,
                paths.next_tpm,
                self._uplinks,
            )
        finally:
            os.close(lock)

    def _hand_over(self, incoming: Incoming) -> None:
        source, qmp = self.source, self.source.qmp
        set_capabilities(qmp, shared=True)
        qmp.execute("migrate-set-parameters", {"max-bandwidth": UNLIMITED})
        second = incoming.qmp
        process = ProcessId.of(incoming.starting.process.pid)
        if process is None:
            raise incoming.refusal()
        running = qmp.execute("query-status", reply=StatusInfo).running
        source.instant.ready()
        self.clock, begin = time.time(), time.monotonic()
        qmp.execute("stop")
        source.instant.stands()
        failpoint("stopped")
        self._uplinks.drain()  # the first QEMU has these frames already
        save(qmp, source.made)
        freeze_variables(source.paths, source.machine, source.made, self.record)
        os.unlink(source.paths.memory)  # so that nobody frees it when the first ends
        failpoint("saved")
        incoming.load(source.made.devices, shared=True)
        failpoint("loaded")
        source.instant.all_stand()
        self._decide(process, incoming)
        if running:
            try:
                second.execute("cont")
            except PeerClosed as error:
                raise incoming.refusal() from error
        self.pause = time.monotonic() - begin
        source.instant.runs()

    def _decide(self, process: ProcessId, incoming: Incoming) -> None:
        handover = self.record.handover
        if handover is None or handover.next is None:
            return
        if not process.alive():
            raise incoming.refusal()
        second = msgspec.structs.replace(
            with_tpm(handover.next, incoming.starting.tpm),
            pid=process.pid,
            start_ticks=process.start_ticks,
            argv=tuple(incoming.argv),
            wires=tuple(self._uplinks.wires),
            forwards=(),
            later_forwards=later_forwards(self.source.machine),
        )
        handover = msgspec.structs.replace(handover, next=second, decided=True)
        decided = msgspec.structs.replace(self.record, handover=handover, state=self.source.made.id)
        write_record(self.source.paths.record, decided, durable=False)
        self.record = decided
        failpoint("decided")

    def _finish(self, incoming: Incoming) -> None:
        source = self.source
        launched = incoming.launched
        detach(incoming.starting.process)
        finish(
            source.context,
            source.paths,
            self.record,
            qmp=incoming.qmp,
            devices={name: console.fileno() for name, console in incoming.consoles.items()},
            messages_fd=launched.messages_fd if launched else None,
        )


def save(qmp: QmpClient, made: StatePaths) -> None:
    """Let a stopped QEMU write its state to ``devices``. Raises QemuError, HostError."""
    try:
        fd = os.open(made.devices, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise host_error(error, made.devices) from error
    try:
        qmp.send_fd("state", fd)
    finally:
        os.close(fd)
    qmp.execute("migrate", {"uri": "fd:state"})
    try:
        await_migration(qmp, timeout=SAVE_SECONDS)
    except QemuError as error:
        raise _explained(error, made) from error


def _explained(error: QemuError, made: StatePaths) -> WirtError:
    """QEMU does not say why it could not write; a full disk is seen."""
    facts = os.statvfs(made.root)
    if facts.f_bavail * facts.f_frsize < _SHORT:
        return NoSpace(
            f"{made.devices}: no space left", hint="free space: wirt images, wirt ls, df -h"
        )
    return error


def without_forwards(machine: Machine) -> Machine:
    """Return the description without host ports, which another QEMU still holds."""
    nics = tuple(
        msgspec.structs.replace(nic, backend=msgspec.structs.replace(nic.backend, forwards=()))
        if isinstance(nic.backend, User)
        else nic
        for nic in machine.nics
    )
    return msgspec.structs.replace(machine, nics=nics)


def later_forwards(machine: Machine) -> tuple[tuple[str, str, tuple[str, int, int]], ...]:
    """Return what to open once another QEMU has let go of it, as a record has it."""
    return tuple(
        (
            f"{nic_id(nic, index)}-net",
            forward_text(forward),
            (forward.protocol, forward.host_port, forward.guest_port),
        )
        for index, nic in enumerate(machine.nics)
        if isinstance(nic.backend, User)
        for forward in nic.backend.forwards
    )
