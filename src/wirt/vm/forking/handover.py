"""Handing a running machine over to a second QEMU, in an order in which any step can be killed.

::

    run by the first ──journal──► both exist ──decide──► run by the second
                                     │ undo                 │ finish
                                     ▼                      ▼
                              run by the first        run by the second

The journal is ``handover`` in the machine's record. While both exist at most one has ever run
the guest since it was stopped: the first goes on only if it was not decided, the second only
if it was. ``undo`` and ``finish`` can be repeated; whichever command meets a journal whose
writer is gone calls ``recover``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack

import msgspec

from wirt.errors import CommandRefused, ProtocolError, Timeout, WirtError
from wirt.host.failpoint import failpoint
from wirt.host.holders import processes_with
from wirt.host.process_id import ProcessId
from wirt.protocols.qmp.client import QmpClient
from wirt.protocols.qmp.messages import BlockNodeInfo, StatusInfo
from wirt.store.atomic import sync_directory
from wirt.store.layout import VmPaths
from wirt.store.locks import try_lock
from wirt.store.machines import remove_machine
from wirt.store.record import Handover, Record, Run, read_record, write_record
from wirt.store.states import collect
from wirt.vm.context import Context
from wirt.vm.description import load_started
from wirt.vm.keeping import console_names, ensure_keeper, start_keeper
from wirt.vm.memory import remove_memory
from wirt.vm.monitor import connect
from wirt.vm.network.uplinks import release_interfaces
from wirt.vm.tpm import await_end, take_next

_KILL_SECONDS = 15.0
_SETTLE_SECONDS = 30.0
_BESIDE = ".next-"


def take_names(paths: VmPaths, handover: Handover) -> None:
    """Put the overlays, which have been made beside, under the names of the images."""
    for name, _ in handover.images:
        os.rename(beside(paths, name), os.path.join(paths.disks, name))
        failpoint("take-name")
    sync_directory(paths.disks)


def beside(paths: VmPaths, name: str) -> str:
    """Return where the overlay waits that will be called ``name``."""
    return os.path.join(paths.disks, _BESIDE + name)


def clear_beside(paths: VmPaths) -> None:
    """Remove overlays that never got their names."""
    for name in os.listdir(paths.disks):
        if name.startswith(_BESIDE):
            os.unlink(os.path.join(paths.disks, name))


def undo(
    context: Context, paths: VmPaths, record: Record, *, qmp: QmpClient | None = None
) -> Record:
    """Let the first QEMU go on as if nothing had been; nothing has run in a second.

    One that stayed in its QEMU, and writes to the overlays already, keeps these. ``qmp`` is a
    connection to the first, if there is one.
    """
    handover = record.handover
    if handover is None:
        return record
    first = record.run.process if record.run else None
    for process in processes_with(paths.run_lock):
        if process != first:
            _end(process)
    with ExitStack() as stack:
        if first is not None and first.alive():
            client = qmp or stack.enter_context(connect(paths, record))
            abandon_migration(client)
            if handover.next is None and _writes_to(client, handover.nodes):
                handover = msgspec.structs.replace(handover, images=())
                record = msgspec.structs.replace(record, state=handover.state)
            _drop_nodes(client, handover)
        _restore_names(paths, handover)
        _restore_memory(context, paths, handover)
        if first is not None and first.alive():
            _go_on(client, record)
    for unused in (paths.next_runtime, paths.next_tpm):
        shutil.rmtree(unused, ignore_errors=True)
    record = msgspec.structs.replace(record, handover=None)
    write_record(paths.record, record)
    collect(context.home, handover.state)
    return record


def _writes_to(qmp: QmpClient, names: Collection[str]) -> bool:
    """True if the guest's writes go to these nodes: they have the images below them."""
    nodes = qmp.execute("query-named-block-nodes", {"flat": True}, reply=list[BlockNodeInfo])
    return any(node.node_name in names and node.backing_file for node in nodes)


def _drop_nodes(qmp: QmpClient, handover: Handover) -> None:
    """Close overlays that were opened and never used."""
    for name in handover.nodes if handover.images else ():
        for node in (name, f"{name}-file"):
            with contextlib.suppress(CommandRefused):
                qmp.execute("blockdev-del", {"node-name": node})


def _end(process: ProcessId) -> None:
    if process.pid and process.kill():
        process.wait(_KILL_SECONDS)


def _restore_names(paths: VmPaths, handover: Handover) -> None:
    clear_beside(paths)
    for name, frozen in handover.images:
        target = os.path.join(paths.disks, name)
        if os.path.exists(frozen) and not _same_file(target, frozen):
            os.link(frozen, beside(paths, name))
            os.rename(beside(paths, name), target)
    sync_directory(paths.disks)


def _restore_memory(context: Context, paths: VmPaths, handover: Handover) -> None:
    frozen = context.home.state(handover.state).memory
    if handover.next is not None and os.path.exists(frozen) and not os.path.exists(paths.memory):
        os.link(frozen, paths.memory)


def _same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except FileNotFoundError:
        return False


def _go_on(qmp: QmpClient, record: Record) -> None:
    """Let the guest run on, if it is meant to run."""
    if record.run is not None and not record.run.paused_on_request:
        go_on(qmp)


def go_on(qmp: QmpClient) -> None:
    """``cont`` after a migration: QEMU says that one is complete a moment before it is."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        try:
            qmp.execute("cont")
        except CommandRefused as error:
            if "not finalized" not in error.description or time.monotonic() > deadline:
                raise
            time.sleep(0.001)
        else:
            return


def abandon_migration(qmp: QmpClient) -> None:
    """Stop a migration that may be going on, and forget its settings."""
    with contextlib.suppress(CommandRefused):
        qmp.execute("migrate_cancel")
    for name in ("x-ignore-shared", "pause-before-switchover"):
        wanted = {"capability": name, "state": False}
        with contextlib.suppress(CommandRefused):
            qmp.execute("migrate-set-capabilities", {"capabilities": [wanted]})


def finish(
    context: Context,
    paths: VmPaths,
    record: Record,
    *,
    qmp: QmpClient | None = None,
    devices: Mapping[str, int] | None = None,
    messages_fd: int | None = None,
) -> Record:
    """Make the second QEMU the machine in every respect. It may run the guest already.

    ``qmp`` and ``devices`` are connections to it and its consoles, ``messages_fd`` its standard
    error: what its starter has, and who recovers makes anew.
    """
    handover = record.handover
    if handover is None:
        return record
    if handover.next is None:
        return undo(context, paths, record, qmp=qmp)
    remove_memory(paths)  # the name alone: by it the first's keeper would free what is frozen
    if record.run is not None:
        if record.run.process.alive():
            _end(record.run.process)
            release_interfaces(context, record.run.wires)
        await_end(record.run)
    failpoint("first-ended")
    take_next(paths.tpm, paths.next_tpm)
    failpoint("tpm-moved")
    _move_sockets(paths)
    failpoint("sockets-moved")
    record = msgspec.structs.replace(record, run=handover.next, handover=None)
    if record.run is not None and record.run.process.alive():
        with ExitStack() as stack:
            client = qmp or stack.enter_context(connect(paths, record))
            record = _settle(context, record, client)
        _log(context, paths, record, devices, messages_fd)
    write_record(paths.record, record)
    failpoint("handed-over")
    return record


def _move_sockets(paths: VmPaths) -> None:
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(paths.next_runtime)):
            os.rename(os.path.join(paths.next_runtime, name), os.path.join(paths.runtime, name))
        os.rmdir(paths.next_runtime)


def _settle(context: Context, record: Record, qmp: QmpClient) -> Record:
    run = record.run
    if run is None:
        return record
    if not run.paused_on_request and not qmp.execute("query-status", reply=StatusInfo).running:
        qmp.execute("cont")
    return msgspec.structs.replace(record, run=_open_forwards(context, qmp, run))


def _log(
    context: Context,
    paths: VmPaths,
    record: Record,
    devices: Mapping[str, int] | None,
    messages_fd: int | None,
) -> None:
    try:
        if devices is None:
            ensure_keeper(paths, record, console_names(load_started(paths)))
        else:
            start_keeper(paths, record, sorted(devices), messages_fd, devices=devices)
    except WirtError as error:
        context.say(f"the console of {paths.name} is not logged: {error}")


def _open_forwards(context: Context, qmp: QmpClient, run: Run) -> Run:
    """Open the host ports again that the first QEMU held until now."""
    kept = []
    for netdev, text, forward in run.later_forwards:
        answer = qmp.execute(
            "human-monitor-command",
            {"command-line": f"hostfwd_add {netdev} {text}"},
            reply=str,
        ).strip()
        if answer and "already" not in answer:
            context.say(f"port {forward[1]} of this host is not forwarded any more: {answer}")
        else:
            kept.append(forward)
    return msgspec.structs.replace(run, forwards=tuple(kept), later_forwards=())


def recover(context: Context, paths: VmPaths) -> Record:
    """Bring a machine whose lock we hold out of what a killed command left it in.

    A fork that never ran is removed: then NotFound is what the next look says.
    """
    record = read_record(paths.record)
    if record.unborn:
        for process in processes_with(paths.run_lock):
            process.kill()
            process.wait(_KILL_SECONDS)
        remove_machine(context.home, paths)
        collect(context.home, record.state)
    elif record.handover is not None:
        with contextlib.suppress(ProtocolError, Timeout):  # QEMU died as well: names are right
            record = (finish if record.handover.decided else undo)(context, paths, record)
    return record


def recover_if_abandoned(context: Context, paths: VmPaths) -> bool:
    """The same where nobody holds the lock. True if something was done."""
    record = read_record(paths.record)
    if not record.unborn and record.handover is None:
        return False
    lock = try_lock(paths.lock)
    if lock is None:
        return False
    try:
        recover(context, paths)
    finally:
        os.close(lock)
    return True
