"""Freezing a machine that is down: its disks, and what the firmware remembers.

The images get a second name in the state, and overlays take the first, as when a machine
runs. It is journaled like a handover that is not decided: a command that was killed is undone.
"""

from __future__ import annotations

import contextlib
import os
import time

import msgspec

from wirt.errors import WrongState
from wirt.host.failpoint import failpoint
from wirt.host.qemu_probe import probe
from wirt.spec.machine import Machine
from wirt.store.layout import StatePaths, VmPaths
from wirt.store.record import Handover, Record, write_record
from wirt.store.states import (
    Manifest,
    State,
    hold,
    new_state,
    process_label,
    publish,
    release,
    sweep_states,
)
from wirt.vm import state
from wirt.vm.context import Context
from wirt.vm.description import load_spec
from wirt.vm.forking.disks import freeze_disks, freeze_variables, obstacles
from wirt.vm.forking.handover import clear_beside, recover, take_names, undo
from wirt.vm.forking.incoming import qemu_facts
from wirt.vm.forking.source import Frozen, overlays_beside
from wirt.vm.start import DEFAULT_BINARY
from wirt.vm.tpm import copy_state


def freeze_stopped(context: Context, paths: VmPaths) -> Frozen:
    """Freeze the disks of a machine that is down, whose lock the caller holds.

    This process holds the state. Raises WrongState, naming a disk that cannot be frozen, before
    anything is touched.
    """
    record = recover(context, paths)
    state.require_stopped(paths, "only its disks would be frozen")
    sweep_states(context.home)
    clear_beside(paths)
    machine = load_spec(paths)
    problems = obstacles(paths, machine)
    if problems:
        raise WrongState(
            f"{paths.name} cannot be frozen: " + "; ".join(device for device, _ in problems),
            hint="; ".join(dict.fromkeys(cure for _, cure in problems)),
        )
    record = msgspec.structs.replace(record, group=record.group or record.uid)
    with new_state(context.home) as made:
        manifest = _describe(context, paths, machine, made, record)
        frozen = _freeze(context, paths, machine, made, record, manifest)
    return Frozen(frozen, 0.0, "disks")


def _describe(
    context: Context, paths: VmPaths, machine: Machine, made: StatePaths, record: Record
) -> Manifest:
    if os.path.exists(paths.uefi_variables):
        freeze_variables(paths, machine, made, record)
    if os.path.isdir(paths.tpm):
        copy_state(paths.tpm, made.tpm)
    capabilities = probe(machine.qemu.binary or DEFAULT_BINARY, context.home.cache)
    now = time.time()
    return Manifest(
        created=now,
        source=paths.name,
        parent=record.state,
        machine=machine,
        accelerator="",
        cpu="",
        qemu=qemu_facts(context, capabilities),
        argv=(),
        memory=machine.memory,
        disks=freeze_disks(paths, machine, made, record),
        clock=now,
        method="disks",
        image=record.image,
        image_id=record.image_id,
        guest_user=record.guest_user,
    )


def _freeze(
    context: Context,
    paths: VmPaths,
    machine: Machine,
    made: StatePaths,
    record: Record,
    manifest: Manifest,
) -> State:
    images = overlays_beside(paths, machine, made, record, manifest.disks)
    journaled = msgspec.structs.replace(record, handover=Handover(made.id, images))
    try:
        write_record(paths.record, journaled)
        failpoint("journaled")
        take_names(paths, Handover(made.id, images))
        hold(State(made, manifest), process_label())
        frozen = publish(made, manifest)
        failpoint("state-published")
        write_record(paths.record, msgspec.structs.replace(record, state=made.id))
        failpoint("disks-frozen")
    except BaseException:
        undo(context, paths, journaled)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(made.manifest)
        release(State(made, manifest), process_label())
        raise
    return frozen
