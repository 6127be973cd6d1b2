"""What a machine is doing now: the run lock decides, QEMU is asked for the rest."""

from __future__ import annotations

import os
from dataclasses import dataclass

import msgspec

from wirt.errors import ProtocolError, SpecError, Timeout, WirtError, WrongState
from wirt.host.process import ProcessId
from wirt.protocols.qmp.client import QmpClient
from wirt.protocols.qmp.messages import StatusInfo, UuidInfo
from wirt.spec import toml
from wirt.spec.machine import Machine
from wirt.store.layout import VmPaths
from wirt.store.locks import run_lock_is_held
from wirt.store.machines import read_spec
from wirt.store.record import Record, Run, Summary, read_record

_WORDS = {
    "prelaunch": "starting",
    "inmigrate": "incoming",
    "io-error": "paused (disk error)",
    "internal-error": "stopped by an internal error",
    "guest-panicked": "panicked",
}


@dataclass(frozen=True, slots=True)
class VmState:
    """``status`` is ``stopped``, ``starting``, or QEMU's word: ``running``, ``paused`` …"""

    name: str
    status: str
    record: Record
    note: str = ""

    @property
    def is_up(self) -> bool:
        return self.status != "stopped"


def boot_id() -> str:
    """Return the identity of this boot of the host."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def look(paths: VmPaths, *, ask: bool = True, timeout: float = 2.0) -> VmState:
    """Return the state of a machine. With ``ask``, QEMU says whether it runs or is paused."""
    record = read_record(paths.record)
    if not run_lock_is_held(paths.run_lock):
        return VmState(paths.name, "stopped", record, _why_stopped(record))
    if record.phase != "running":
        return VmState(paths.name, "starting", record)
    if not ask:
        return VmState(paths.name, "running", record)
    try:
        with connect(paths, record, timeout=timeout) as qmp:
            status = qmp.execute("query-status", reply=StatusInfo, timeout=timeout).status
    except (Timeout, ProtocolError, WrongState) as error:
        return VmState(paths.name, "running", record, f"QEMU did not answer: {error}")
    return VmState(paths.name, _WORDS.get(status, status), record)


def _why_stopped(record: Record) -> str:
    if record.phase == "stopped" or record.run is None:
        return record.ended
    if record.run.boot_id != boot_id():
        return "the host rebooted"
    return "QEMU ended by itself (the guest powered off, or see wirt logs --qemu)"


def connect(paths: VmPaths, record: Record, *, timeout: float = 10.0) -> QmpClient:
    """Return a QMP client of the machine's own QEMU.

    The peer must be the recorded process with the machine's UUID: a hostile QEMU could have
    put a link to another machine's socket in its place. Raises WrongState, ProtocolError,
    Timeout.
    """
    if record.run is None:
        raise WrongState(f"{paths.name} is not running", hint=f"wirt start {paths.name}")
    client = QmpClient.connect(paths.socket("qmp"), timeout=timeout)
    try:
        _verify(client, paths, record.run, timeout)
    except BaseException:
        client.close()
        raise
    return client


def _verify(client: QmpClient, paths: VmPaths, run: Run, timeout: float) -> None:
    if client.peer_pid() != run.pid:
        raise ProtocolError(
            f"{paths.socket('qmp')} is served by process {client.peer_pid()}, not by the QEMU "
            f"that was started ({run.pid})",
            hint=f"wirt stop --force {paths.name}",
        )
    uuid = client.execute("query-uuid", reply=UuidInfo, timeout=timeout).uuid
    expected = run.argv[run.argv.index("-uuid") + 1] if "-uuid" in run.argv else uuid
    if uuid != expected:
        raise ProtocolError(f"QEMU {run.pid} has the UUID {uuid}, not {expected}")


def process_of(record: Record) -> ProcessId | None:
    """Return the recorded QEMU process, if there is one."""
    return ProcessId(record.run.pid, record.run.start_ticks) if record.run else None


def require_running(paths: VmPaths) -> VmState:
    """Return the state of a machine that is up. Raises WrongState."""
    state = look(paths, ask=False)
    if not state.is_up:
        note = f" ({state.note})" if state.note else ""
        raise WrongState(f"{paths.name} is not running{note}", hint=f"wirt start {paths.name}")
    return state


def require_stopped(paths: VmPaths, why: str) -> VmState:
    """Return the state of a machine that is down. Raises WrongState."""
    state = look(paths, ask=False)
    if state.is_up:
        raise WrongState(f"{paths.name} is running: {why}", hint=f"wirt stop {paths.name}")
    return state


def load_spec(paths: VmPaths) -> Machine:
    """Return the description as machine.toml says it now; its name is its directory's."""
    machine = toml.load(read_spec(paths), file=paths.spec)
    return msgspec.structs.replace(machine, name=paths.name)


def summary_of(paths: VmPaths, record: Record) -> Summary:
    """Return what a list shows, read anew only if machine.toml changed since it was taken."""
    try:
        info = os.stat(paths.spec)
    except OSError:
        return record.summary or Summary(0, 0, "")
    known = record.summary
    if known and (known.mtime_ns, known.size) == (info.st_mtime_ns, info.st_size):
        return known
    try:
        machine = load_spec(paths)
    except (SpecError, WirtError):
        return Summary(0, 0, "", mtime_ns=info.st_mtime_ns, size=info.st_size)
    return summarise(paths, machine)


def summarise(paths: VmPaths, machine: Machine) -> Summary:
    """Return the summary of ``machine``, which machine.toml holds."""
    info = os.stat(paths.spec)
    return Summary(
        memory=machine.memory,
        vcpus=machine.cpu.vcpus,
        uuid=machine.uuid,
        autostart=machine.autostart,
        mtime_ns=info.st_mtime_ns,
        size=info.st_size,
    )
