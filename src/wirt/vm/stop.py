"""Stopping a machine: ask the guest, wait, and say what is done when it does not follow."""

from __future__ import annotations

import contextlib
import os
import shutil
import time

import msgspec

from wirt.errors import (
    Busy,
    CommandRefused,
    GuestError,
    NoSpace,
    PeerClosed,
    ProtocolError,
    Timeout,
    WirtError,
    WrongState,
)
from wirt.host.holders import kill_holders, processes_with
from wirt.host.process_id import ProcessId
from wirt.protocols.qga.client import AgentClient
from wirt.protocols.qmp.messages import StatusInfo
from wirt.qemu.block import is_read_only
from wirt.store.layout import VmPaths
from wirt.store.locks import run_lock_is_held
from wirt.store.machines import locked
from wirt.store.record import Record, write_record
from wirt.vm import state
from wirt.vm.channels import AGENT, HELPERS, open_ports
from wirt.vm.context import Context
from wirt.vm.description import load_spec, load_started
from wirt.vm.disk_serving import end_disk_server
from wirt.vm.forking.handover import recover
from wirt.vm.forking.identity import run_first_time
from wirt.vm.memory import remove_memory
from wirt.vm.monitor import connect
from wirt.vm.network.uplinks import release_all
from wirt.vm.preflight import image_path
from wirt.vm.session import guest_session
from wirt.vm.tpm import await_end

DEFAULT_SECONDS = 90.0
_QUIT_SECONDS = 15.0
_AGENT_SECONDS = 10.0
_POWER_OFF = "systemctl --no-block poweroff 2>/dev/null || poweroff"


def stop(
    context: Context, name: str, *, timeout: float = DEFAULT_SECONDS, force: bool = False
) -> bool:
    """Stop the machine; False if it was down already.

    The guest is asked to power off and given ``timeout`` seconds, then QEMU is told to quit,
    which is what pulling the plug is to a computer; ``force`` does that at once. Images stay
    consistent as images in every case.
    """
    with locked(context.home, name, waiting=context.say) as paths:
        return stop_locked(context, paths, timeout=timeout, force=force)


def stop_locked(context: Context, paths: VmPaths, *, timeout: float, force: bool) -> bool:
    """Stop a machine whose lock the caller holds."""
    record = recover(context, paths)
    if not run_lock_is_held(paths.run_lock):
        if record.phase != "stopped":
            settle(context, paths, record, state.look(paths, ask=False).note)
        return False
    process = state.process_of(record)
    if record.phase != "running" or process is None:
        kill_holders(paths.run_lock)
        settle(context, paths, record, "its start was interrupted")
        return True
    how = _power_off(context, paths, record, process, timeout) if not force else ""
    if not how:
        how = _quit(paths, record, process)
    settle(context, paths, record, how)
    return True


def _power_off(
    context: Context, paths: VmPaths, record: Record, process: ProcessId, timeout: float
) -> str:
    """Return how the guest went down, or "" when it did not within ``timeout`` seconds."""
    try:
        asked = _ask_guest(paths, record)
    except WirtError as error:
        context.say(f"the guest cannot be asked to power off: {error}")
        return ""
    context.say(f"asked the guest to power off ({asked})")
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.wait(min(1.0, max(0.01, deadline - time.monotonic()))):
            return f"the guest powered off ({asked})"
    context.say(f"the guest is still up after {timeout:.0f} s: QEMU is told to quit")
    return ""


def _ask_guest(paths: VmPaths, record: Record) -> str:
    with connect(paths, record) as qmp:
        status = qmp.execute("query-status", reply=StatusInfo).status
        if status != "running":
            raise WrongState(f"it is {status}, not running")
        ports = open_ports(qmp)
    if AGENT in ports:
        with (
            contextlib.suppress(ProtocolError, Timeout),
            AgentClient.connect(paths.socket(AGENT), timeout=_AGENT_SECONDS) as client,
        ):
            client.shutdown()
            return "guest agent"
    if ports.intersection(HELPERS) and _ask_helper(paths):
        return "wirt's helper"
    with connect(paths, record) as qmp:
        qmp.execute("system_powerdown")
    return "ACPI power button"


def _ask_helper(paths: VmPaths) -> bool:
    """Power off through the helper. True if it was done, or the guest went down meanwhile."""
    try:
        with guest_session(paths, timeout=_AGENT_SECONDS) as session:
            return session.exec(["sh", "-c", _POWER_OFF], timeout=_AGENT_SECONDS) == 0
    except PeerClosed:
        return True
    except (ProtocolError, Timeout, GuestError, Busy):
        return False


def _quit(paths: VmPaths, record: Record, process: ProcessId) -> str:
    with (
        contextlib.suppress(ProtocolError, Timeout, CommandRefused),
        connect(paths, record, timeout=3.0) as qmp,
    ):
        qmp.execute("quit", timeout=3.0)
    if process.wait(_QUIT_SECONDS):
        return "QEMU was told to quit"
    process.kill()
    if not process.wait(_QUIT_SECONDS):
        raise _undying(process)
    return "QEMU did not answer and was killed"


def _undying(process: ProcessId) -> Timeout:
    return Timeout(
        f"QEMU {process.pid} does not even end when killed",
        hint="it hangs in the kernel: see its state in /proc, and the disk's",
    )


def kill_locked(context: Context, paths: VmPaths) -> None:
    """End a machine whose images are to be removed with it; the caller holds its lock.

    QEMU need not write them out, unless it also writes to an image of the user's. The record is
    left as it is: killed now, the machine is one that ended by itself.
    """
    record = recover(context, paths)
    process = state.process_of(record)
    if record.phase != "running" or process is None or not _writes_its_own(paths, record):
        stop_locked(context, paths, timeout=0, force=True)
        return
    process.kill()
    if not process.wait(_QUIT_SECONDS):
        raise _undying(process)
    _clean_up(context, paths, record)


def _writes_its_own(paths: VmPaths, record: Record) -> bool:
    """True if QEMU writes to no image but those in the machine's directory."""
    if record.run is None or record.run.served:
        return False
    try:
        disks = load_started(paths).disks
    except WirtError:
        return False
    images = [image_path(paths, disk) for disk in disks if disk.image and not is_read_only(disk)]
    return all(os.path.dirname(os.path.realpath(image)) == paths.disks for image in images)


def settle(context: Context, paths: VmPaths, record: Record, ended: str) -> None:
    """Record that a machine is down, and remove its sockets and what its cards left."""
    _clean_up(context, paths, record)
    down = msgspec.structs.replace(
        record, phase="stopped", run=None, ended=ended, identity_due=None
    )
    try:
        write_record(paths.record, down)
    except NoSpace as error:  # then it is one that ended by itself
        context.say(f"{paths.name} is down; that cannot be written down: {error.message}")


def _clean_up(context: Context, paths: VmPaths, record: Record) -> None:
    for process in processes_with(paths.run_lock) if run_lock_is_held(paths.run_lock) else []:
        process.wait(_QUIT_SECONDS)
    if record.run is not None:
        release_all(context, paths.name, record.run.wires)
    end_disk_server(record.run)
    await_end(record.run)
    shutil.rmtree(paths.runtime, ignore_errors=True)
    remove_memory(paths)


def pause(context: Context, name: str) -> None:
    """Stop the vCPUs; memory and devices stay. Raises WrongState, ProtocolError, Timeout."""
    _vcpus(context, name, "stop")


def resume(context: Context, name: str) -> None:
    """Let the vCPUs run again."""
    _vcpus(context, name, "cont")


def _vcpus(context: Context, name: str, command: str) -> None:
    with locked(context.home, name, waiting=context.say) as paths:
        recover(context, paths)
        record = state.require_running(paths).record
        due = record.identity_due if command == "cont" else None
        with connect(paths, record) as qmp:
            if due is None:
                qmp.execute(command)
            else:
                outcome = run_first_time(paths, load_spec(paths), due, qmp)
                for what in outcome.unchanged:
                    context.say(f"{name} has as its source: {what}")
        run = record.run
        if run is not None:
            run = msgspec.structs.replace(run, paused_on_request=command == "stop")
        due = None if due is not None else record.identity_due
        pool = "" if command == "cont" else record.pool
        write_record(
            paths.record, msgspec.structs.replace(record, run=run, identity_due=due, pool=pool)
        )
