"""Going back to a snapshot: the machine itself, or a new one beside it."""

from __future__ import annotations

import msgspec

from wirt.errors import NotFound, WirtError, WrongState
from wirt.host.failpoint import failpoint
from wirt.host.qemu_probe import probe
from wirt.spec import toml
from wirt.store import snapshots as store
from wirt.store.atomic import write_file
from wirt.store.layout import VmPaths
from wirt.store.machines import find, locked, making, remove_machine, replacing
from wirt.store.record import Record, read_record, write_record
from wirt.store.snapshots import Snapshot
from wirt.store.states import State, collect, using
from wirt.vm import state
from wirt.vm.context import Context
from wirt.vm.description import load_started, summarise
from wirt.vm.forking.back import SAME, Return, as_before, refill
from wirt.vm.forking.forkable import not_handed_over
from wirt.vm.forking.handover import recover
from wirt.vm.forking.incoming import Ground, ground_of
from wirt.vm.forking.spawn import AS_USUAL, describe, lay_disks, record_of, spawn_from
from wirt.vm.ownership import give
from wirt.vm.snapshot import take
from wirt.vm.start import DEFAULT_BINARY
from wirt.vm.stop import stop_locked

REPLACED = "replaced"
"""The snapshot of what a restore replaced."""


class Restored(msgspec.Struct, frozen=True):
    """What a restore came to."""

    machine: str
    snapshot: str
    running: bool
    """False: the snapshot is of a machine that was down."""
    kept: str = ""
    """The snapshot of what was replaced."""
    forwards: tuple[tuple[str, int, int], ...] = ()
    unchanged: tuple[str, ...] = ()
    """What the guest could not be told, in words."""


def restore(
    context: Context, machine: str, name: str, *, to: str = "", discard: bool = False
) -> Restored:
    """Bring the machine back to a snapshot, or with ``to`` make a new one of it.

    What is replaced is kept as snapshot ``replaced`` first, unless ``discard``. Raises NotFound,
    AlreadyExists, WrongState, NoSpace, QemuError; then the machine is as before.
    """
    if to:
        snapshot = store.read_snapshot(find(context.home, machine), name)
        return _beside(context, snapshot, to)
    with locked(context.home, machine, waiting=context.say) as paths:
        recover(context, paths)
        find(context.home, machine)
        snapshot = store.read_snapshot(paths, name)
        with using(context.home, snapshot.state) as known:
            done = _in_place(context, paths, snapshot, known, discard=discard)
    store.sweep(context.home)
    return done


def undo(context: Context, machine: str, *, discard: bool = False) -> Restored:
    """Bring the machine back to its newest snapshot, but for what a restore replaced."""
    kept = store.snapshots(find(context.home, machine))
    names = [one.name for one in kept if one.name != REPLACED]
    if not names:
        raise NotFound(f"{machine} has no snapshots", hint=f"wirt snapshot {machine} NAME")
    return restore(context, machine, names[-1], discard=discard)


def _ground(context: Context, known: State, snapshot: Snapshot) -> Ground:
    manifest = known.manifest
    if snapshot.memory:
        memory = "" if manifest.in_devices else known.memory
        return ground_of(context, known.paths, manifest, memory)
    binary = manifest.machine.qemu.binary or DEFAULT_BINARY
    return Ground(known.paths, manifest, "", probe(binary, context.home.cache))


def _beside(context: Context, snapshot: Snapshot, new: str) -> Restored:
    with using(context.home, snapshot.state) as known:
        if not snapshot.memory:
            _make_stopped(context, _ground(context, known, snapshot), new)
            disk = ("host name", "machine-id")
            return Restored(new, snapshot.name, running=False, unchanged=disk)
        made = spawn_from(context, known, new)
    return Restored(
        new, snapshot.name, running=True, forwards=made.forwards,
        unchanged=made.identity.unchanged,
    )  # fmt: skip


def _make_stopped(context: Context, ground: Ground, name: str) -> None:
    with making(context.home, name) as made:
        paths = made.paths
        spec, _ = describe(ground, name, AS_USUAL)
        lay_disks(ground, paths, spec)
        write_file(paths.spec, toml.dump(spec).encode())
        record = record_of(context, ground, AS_USUAL)
        write_record(paths.record, msgspec.structs.replace(record, summary=summarise(paths, spec)))
        give(paths, record)
        made.publish()


def _in_place(
    context: Context, paths: VmPaths, snapshot: Snapshot, known: State, *, discard: bool
) -> Restored:
    ground = _ground(context, known, snapshot)
    up = state.look(paths, ask=False).is_up
    if up and snapshot.memory:
        _require_movable(paths)
    if not discard:
        try:
            take(context, paths, REPLACED)
        except WirtError:
            context.say(f"what {paths.name} is now cannot be kept; --discard restores all the same")
            raise
    record = read_record(paths.record)
    if not up:
        record = msgspec.structs.replace(record, run=None)
    act = _return_running if snapshot.memory else _return_stopped
    done = act(context, paths, snapshot, ground, record)
    if record.state:
        collect(context.home, record.state)
    return msgspec.structs.replace(done, kept="" if discard else REPLACED)


def _require_movable(paths: VmPaths) -> None:
    """Two QEMUs have the machine for a moment. Raises WrongState where they cannot."""
    why = not_handed_over(load_started(paths))
    if why:
        raise WrongState(
            f"{paths.name} cannot be restored while it runs: {why}",
            hint=f"wirt stop {paths.name}, then restore it",
        )


def _return_running(
    context: Context, paths: VmPaths, snapshot: Snapshot, ground: Ground, record: Record
) -> Restored:
    with replacing(context.home, paths.name) as made:
        back = Return(
            context, ground, made, old=paths, record=record, description=snapshot.description
        )
        try:
            back.load()
            old = back.replace()
        except BaseException:
            if not made.published:
                back.undo()
            raise
        outcome = back.take_over()
        remove_machine(context.home, old)
    life = read_record(paths.record).run
    return Restored(
        paths.name, snapshot.name, running=True, forwards=life.forwards if life else (),
        unchanged=outcome.unchanged,
    )  # fmt: skip


def _return_stopped(
    context: Context, paths: VmPaths, snapshot: Snapshot, ground: Ground, record: Record
) -> Restored:
    with replacing(context.home, paths.name) as made:
        refill(ground, made.paths, paths, snapshot.description)
        fresh = record_of(context, ground, SAME)
        summary = summarise(made.paths, ground.manifest.machine)
        write_record(made.paths.record, as_before(fresh, record, summary=summary))
        give(made.paths, fresh)
        stop_locked(context, paths, timeout=0, force=True)
        failpoint("restore-ready")
        old = made.replace()
        failpoint("exchanged")
        remove_machine(context.home, old)
    return Restored(paths.name, snapshot.name, running=False)
