"""What a machine is doing now: the run lock decides, QEMU is asked for the rest."""

from __future__ import annotations

import os

import msgspec

from wirt.errors import NotFound, ProtocolError, Timeout, WirtError, WrongState
from wirt.host.process_id import ProcessId
from wirt.store.layout import VmPaths
from wirt.store.locks import run_lock_is_held
from wirt.store.record import Record, Summary, read_record
from wirt.vm.context import Context

_WORDS = {
    "prelaunch": "starting",
    "inmigrate": "incoming",
    "io-error": "paused (disk error)",
    "internal-error": "stopped by an internal error",
    "guest-panicked": "panicked",
}

ASK_SECONDS = 2.0
"""One QEMU that hangs must not keep all others from being listed."""
TPM_LOST = "its TPM has ended, and with the guest's next reset QEMU will: restart it"


class VmState(msgspec.Struct, frozen=True):
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


def look(paths: VmPaths, *, ask: bool = True) -> VmState:
    """Return the state of a machine. With ``ask``, QEMU says whether it runs or is paused.

    Raises NotFound for a fork whose maker was killed before it ran.
    """
    record = read_record(paths.record)
    if record.handover is not None or record.unborn:
        record = _settled(paths)
    if not run_lock_is_held(paths.run_lock):
        return VmState(paths.name, "stopped", record, _why_stopped(record))
    if record.phase != "running":
        return VmState(paths.name, "starting", record)
    note = TPM_LOST if tpm_is_lost(record) else ""
    if not ask:
        return VmState(paths.name, "running", record, note)
    from wirt.vm.monitor import query_status

    try:
        status = query_status(paths, record, timeout=ASK_SECONDS)
    except (Timeout, ProtocolError, WrongState) as error:
        return VmState(paths.name, "running", record, f"QEMU did not answer: {error}")
    return VmState(paths.name, _WORDS.get(status, status), record, note)


def tpm_is_lost(record: Record) -> bool:
    """True if QEMU runs and its TPM does not: a reset of the guest will end QEMU too."""
    return record.run is not None and record.run.tpm is not None and not record.run.tpm.alive()


def _settled(paths: VmPaths) -> Record:
    """A fork is going on; or it was killed, and whoever looks brings it to an end."""
    from wirt.vm.forking.handover import recover_if_abandoned

    recover_if_abandoned(Context(paths.home), paths)
    if not os.path.isdir(paths.root):
        raise NotFound(f"the fork {paths.name} was interrupted before it ran, and is undone")
    return read_record(paths.record)


def _why_stopped(record: Record) -> str:
    if record.phase == "stopped" or record.run is None:
        return record.ended
    if record.run.boot_id != boot_id():
        return "the host rebooted"
    return "QEMU ended by itself (the guest powered off, or see wirt logs --qemu)"


def process_of(record: Record) -> ProcessId | None:
    """Return the recorded QEMU process, if there is one."""
    return record.run.process if record.run else None


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


def summary_of(paths: VmPaths, record: Record) -> Summary:
    """Return what a list shows, read anew only if machine.toml changed since it was taken."""
    try:
        info = os.stat(paths.spec)
    except OSError:
        return record.summary or Summary(0, 0, "")
    known = record.summary
    if known and (known.mtime_ns, known.size) == (info.st_mtime_ns, info.st_size):
        return known
    from wirt.vm.description import load_spec, summarise

    try:
        return summarise(paths, load_spec(paths))
    except WirtError:
        return Summary(0, 0, "", mtime_ns=info.st_mtime_ns, size=info.st_size)
