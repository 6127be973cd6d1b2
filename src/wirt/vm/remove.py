"""Removing and renaming machines."""

from __future__ import annotations

from wirt.errors import HostError, WrongState
from wirt.store.layout import VmPaths
from wirt.store.locks import run_lock_is_held
from wirt.store.machines import locked, remove_machine, rename_machine
from wirt.store.record import Record
from wirt.store.snapshots import let_go, snapshots
from wirt.store.states import collect
from wirt.vm import state
from wirt.vm.context import Context
from wirt.vm.forking.handover import recover
from wirt.vm.stop import kill_locked


def remove(context: Context, name: str, *, force: bool = False) -> None:
    """Remove a machine with its disks and logs; ``force`` also one that runs.

    Images that were the user's own stay. Raises NotFound, WrongState.
    """
    with locked(context.home, name, waiting=context.say) as paths:
        record = _record(context, paths, force=force)
        if record.unborn:
            return
        up = run_lock_is_held(paths.run_lock)
        if up and record.phase == "running" and not force:
            raise WrongState(
                f"{name} is running", hint=f"wirt stop {name}, or wirt rm --force {name}"
            )
        if up:
            kill_locked(context, paths)
        kept = snapshots(paths)
        remove_machine(context.home, paths)
    for snapshot in kept:
        let_go(context.home, snapshot)
    if record.state:
        collect(context.home, record.state)


def _record(context: Context, paths: VmPaths, *, force: bool) -> Record:
    """Return the record; a damaged one keeps no machine that is down from being removed."""
    try:
        return recover(context, paths)
    except HostError:
        if force and not run_lock_is_held(paths.run_lock):
            return Record()
        raise


def rename(context: Context, old: str, new: str) -> None:
    """Give a machine that is down another name. Raises AlreadyExists, WrongState."""
    with locked(context.home, old, waiting=context.say) as paths:
        state.require_stopped(paths, "its name is in its command line")
        rename_machine(context.home, paths, new)
