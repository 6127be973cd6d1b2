"""Snapshots of machines: a record in the machine's directory, and a hold on a state.

The hold comes first and goes last. Until the record is there the process that makes the
snapshot holds the state too, so ``sweep`` can tell what was killed from what is being made.
A state is frozen from one machine, so the snapshot's name is enough to tell its holds apart.
"""

from __future__ import annotations

import contextlib
import os
import re

import msgspec

from wirt.errors import NotFound, UsageError, WirtError
from wirt.spec.setting import NAME_PATTERN
from wirt.store.atomic import sync_directory
from wirt.store.layout import Home, VmPaths, private_directory
from wirt.store.record_file import VERSION, names_in, read_file, replace_file
from wirt.store.states import (
    State,
    collect,
    find_state,
    hold,
    holds,
    is_being_made,
    release,
    state_ids,
)

_NAME = re.compile(NAME_PATTERN)
_HOLD = "snapshot-"


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A machine as it was. ``created`` in Unix seconds."""

    version: int = VERSION
    name: str
    state: str
    created: float
    memory: bool
    """False: the machine was down, and its disks are all there is."""
    description: str
    """The text of machine.toml, which the state has as it ran."""


def check_snapshot_name(name: str) -> str:
    """Return ``name``. Raises UsageError for one that is no snapshot's name."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:40]!r} cannot be a snapshot's name",
            hint="letters, digits, dot, dash and underscore, at most 63, no leading dot or dash",
        )
    return name


def read_snapshot(paths: VmPaths, name: str) -> Snapshot:
    """Return a snapshot by its name. Raises NotFound, HostError for a damaged record."""
    path = paths.snapshot(check_snapshot_name(name))
    snapshot = read_file(path, Snapshot, cure=f"wirt snapshots {paths.name} --rm {name}")
    if snapshot is None:
        raise _not_found(paths, name)
    return snapshot


def _not_found(paths: VmPaths, name: str) -> NotFound:
    return NotFound(f"{paths.name} has no snapshot {name!r}", hint=f"wirt snapshots {paths.name}")


def snapshot_names(paths: VmPaths) -> list[str]:
    """Return the names of a machine's snapshots, sorted."""
    return names_in(paths.snapshots, _NAME)


def snapshots(paths: VmPaths) -> list[Snapshot]:
    """Return the snapshots of a machine that can be read, oldest first."""
    found = []
    for name in snapshot_names(paths):
        with contextlib.suppress(WirtError):
            found.append(read_snapshot(paths, name))
    return sorted(found, key=lambda one: one.created)


def add_snapshot(paths: VmPaths, snapshot: Snapshot, state: State) -> None:
    """Make ``state``, which the caller holds, a snapshot. Raises NoSpace, HostError."""
    label = _HOLD + snapshot.name
    private_directory(paths.snapshots)
    hold(state, label)
    try:
        replace_file(paths.snapshot(snapshot.name), snapshot)
    except WirtError:
        release(state, label)
        raise
    sync_directory(paths.root)


def remove_snapshot(home: Home, paths: VmPaths, name: str) -> None:
    """Remove a snapshot; its state goes when nobody stands on it. Raises NotFound."""
    try:
        os.unlink(paths.snapshot(check_snapshot_name(name)))
    except FileNotFoundError:
        raise _not_found(paths, name) from None
    sync_directory(paths.snapshots)
    sweep(home)


def let_go(home: Home, snapshot: Snapshot) -> None:
    """Give up the state of a snapshot whose record is gone."""
    _let_go(home, snapshot.state, _HOLD + snapshot.name)


def _let_go(home: Home, ident: str, label: str) -> None:
    with contextlib.suppress(WirtError):
        release(find_state(home, ident), label)
        collect(home, ident)


def sweep(home: Home) -> None:
    """Let go of states that killed commands held, and that no machine names."""
    held = [
        (paths.id, label)
        for paths in map(home.state, state_ids(home))
        if not is_being_made(paths)
        for label in holds(paths)
        if label.startswith(_HOLD)
    ]
    named = _named(home) if held else None
    if named is None:
        return
    for ident, label in held:
        if (ident, label) not in named:
            _let_go(home, ident, label)


def _named(home: Home) -> set[tuple[str, str]] | None:
    """Return state and label of every snapshot; None if it cannot be known just now."""
    named = set()
    try:
        machines = [name for name in os.listdir(home.vms) if not name.startswith(".old-")]
        for paths in map(home.vm, machines):
            for name in snapshot_names(paths):
                named.add((read_snapshot(paths, name).state, _HOLD + name))
            os.stat(paths.root)  # a machine that was renamed meanwhile may not have been seen
    except (FileNotFoundError, WirtError):
        return None
    return named
