"""Snapshots: a machine as it was, to which it, or a new one, can go back."""

from __future__ import annotations

import os
import time

import msgspec

from wirt.errors import AlreadyExists, HostError, WirtError
from wirt.host.failpoint import failpoint
from wirt.store import snapshots as store
from wirt.store.kept_memory import keep_memory
from wirt.store.layout import VmPaths
from wirt.store.machines import find, locked, read_spec
from wirt.store.snapshots import Snapshot
from wirt.store.states import find_state, users
from wirt.vm import state
from wirt.vm.context import Context
from wirt.vm.family import blocks, files_below
from wirt.vm.forking.fork import give_up
from wirt.vm.forking.freeze import freeze_locked
from wirt.vm.forking.handover import recover
from wirt.vm.forking.still import freeze_stopped


class Taken(msgspec.Struct, frozen=True):
    """A snapshot, and what it cost: ``pause`` in seconds, ``on_disk`` in bytes."""

    machine: str
    name: str
    state: str
    memory: bool
    pause: float
    method: str
    on_disk: int
    notes: tuple[str, ...] = ()


class Row(msgspec.Struct, frozen=True):
    """A snapshot as it is listed. Sizes in bytes, ``created`` in Unix seconds."""

    name: str
    state: str
    created: float
    memory: bool
    on_disk: int
    note: str = ""


def snapshot(context: Context, machine: str, name: str) -> Taken:
    """Keep the machine as it is now under ``name``; it goes on.

    With its memory if it is up, else its disks. Raises AlreadyExists, NoSpace, WrongState
    (a device that cannot be frozen); then there is no snapshot, and the machine is as before.
    """
    store.check_snapshot_name(name)
    with locked(context.home, machine, waiting=context.say) as paths:
        recover(context, paths)
        find(context.home, machine)
        if os.path.exists(paths.snapshot(name)):
            raise AlreadyExists(
                f"{machine} has a snapshot {name!r} already",
                hint=f"choose another name, or remove it: wirt snapshots {machine} --rm {name}",
            )
        return take(context, paths, name)


def take(context: Context, paths: VmPaths, name: str) -> Taken:
    """The same for a machine whose lock the caller holds; one of that name is replaced."""
    up = state.look(paths, ask=False).is_up
    description = read_spec(paths)
    frozen = freeze_locked(context, paths) if up else freeze_stopped(context, paths)
    failpoint("snapshot-frozen")
    try:
        keep_memory(frozen.state)
        failpoint("snapshot-kept")
        made = Snapshot(
            name=name, state=frozen.state.id, created=time.time(), memory=up,
            description=description,
        )  # fmt: skip
        store.add_snapshot(paths, made, frozen.state)
        failpoint("snapshot-named")
    finally:
        give_up(context, frozen.state)
    store.sweep(context.home)  # one of that name that was there before
    on_disk = blocks(files_below(frozen.state.paths.root))
    return Taken(
        paths.name, name, made.state, up, frozen.pause, frozen.method, on_disk, frozen.notes
    )


def list_snapshots(context: Context, machine: str) -> list[Row]:
    """Return the snapshots of a machine, oldest first; damaged ones say so in their note."""
    paths = find(context.home, machine)
    store.sweep(context.home)
    rows = []
    for name in store.snapshot_names(paths):
        try:
            one = store.read_snapshot(paths, name)
            found = find_state(context.home, one.state)
        except WirtError as error:
            rows.append(Row(name, "", 0.0, memory=False, on_disk=0, note=str(error)))
            continue
        rows.append(
            Row(name, one.state, one.created, one.memory, blocks(files_below(found.paths.root)))
        )
    return sorted(rows, key=lambda row: row.created)


def remove_snapshot(context: Context, machine: str, name: str) -> tuple[str, ...]:
    """Remove a snapshot; machines that stand on it stay. Raises NotFound.

    Returns who they are, as ``users`` does: its files stay as long.
    """
    with locked(context.home, machine, waiting=context.say) as paths:
        ident = _state_of(paths, name)
        store.remove_snapshot(context.home, paths, name)
    if ident and os.path.exists(context.home.state(ident).manifest):
        return tuple(users(context.home, ident))
    return ()


def _state_of(paths: VmPaths, name: str) -> str:
    """Return the state of a snapshot; "" for a damaged one, which can be removed all the same."""
    try:
        return store.read_snapshot(paths, name).state
    except HostError:
        return ""
