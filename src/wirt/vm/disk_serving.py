"""Starting and ending the process that serves a machine's images (``wirt.vm.disk_server``)."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import msgspec

from wirt.errors import HostError
from wirt.host.process import detach, spawn
from wirt.host.process_id import ProcessId
from wirt.spec.machine import Machine
from wirt.store.layout import VmPaths
from wirt.store.locks import try_lock
from wirt.store.record import Record, Run, ServedImage, write_record
from wirt.vm.served import SOCKET, export_name
from wirt.vm.state import boot_id

_READY_SECONDS = 60.0
_END_SECONDS = 60.0
_POLL_SECONDS = 0.02
_MOST_WORDS = 4096


def start_disk_server(
    paths: VmPaths,
    record: Record,
    machine: Machine,
    served: Sequence[ServedImage],
    *,
    qemu_runs: bool = False,
) -> ProcessId | None:
    """Serve the images for QEMU, and return when it can connect. Raises HostError.

    The server ends by itself when QEMU does, when QEMU does not come, and, unless
    ``qemu_runs`` already, when this process ends before QEMU has come. That takes a moment,
    and nobody has written down the server of a start that was killed: its lock is awaited.
    """
    if not served:
        return None
    lock = _await_lock(paths)
    ready_read, ready_write = os.pipe()
    settings_fd = os.memfd_create("wirt-disks")
    try:
        settings = _settings(paths, record, machine, served, ready_write)
        settings["parent"] = 0 if qemu_runs else os.getpid()
        os.write(settings_fd, msgspec.json.encode(settings))
        os.lseek(settings_fd, 0, os.SEEK_SET)
        process = spawn(
            [sys.executable, "-P", "-m", "wirt.vm.disk_server", str(settings_fd)],
            stdout=subprocess.DEVNULL,  # a reader of ours must not wait for the server's end
            stderr=subprocess.DEVNULL,
            pass_fds=[settings_fd, ready_write, lock],
            new_session=True,
            cwd="/",
        )
        detach(process)
        os.close(ready_write)
        ready_write = -1
        try:
            _await_ready(ready_read)
        except BaseException:
            process.kill()  # nobody has written yet
            raise
        return ProcessId.of(process.pid)
    finally:
        for fd in (lock, settings_fd, ready_read):
            os.close(fd)
        if ready_write >= 0:
            os.close(ready_write)


def _await_lock(paths: VmPaths) -> int:
    """Return the lock that the server is to inherit. Raises HostError."""
    deadline = time.monotonic() + _END_SECONDS
    while (lock := try_lock(paths.disks_lock)) is None:
        if time.monotonic() > deadline:
            raise HostError(
                "a former server of the machine's disks does not end",
                hint=f"see which: fuser {paths.disks_lock}",
            )
        time.sleep(_POLL_SECONDS)
    return lock


def _settings(
    paths: VmPaths,
    record: Record,
    machine: Machine,
    served: Sequence[ServedImage],
    ready_fd: int,
) -> dict[str, object]:
    return {
        "uid": record.uid,
        "socket": paths.socket(SOCKET),
        "log": paths.disk_server_log,
        "ready_fd": ready_fd,
        "images": [
            {
                "path": one.path,
                "format": one.format,
                "read_only": one.read_only,
                "export": export_name(machine, one),
            }
            for one in served
        ],
    }


def _await_ready(fd: int) -> None:
    ready, _, _ = select.select([fd], [], [], _READY_SECONDS)
    words = os.read(fd, _MOST_WORDS).decode(errors="replace") if ready else ""
    if words != "ready":
        raise HostError(
            f"the server of the machine's disks did not start: {words or 'it said nothing'}"
        )


def process_of_server(run: Run | None) -> ProcessId | None:
    """Return the recorded server, if there is one."""
    if run is None or not run.server_pid or run.boot_id != boot_id():
        return None
    return ProcessId(run.server_pid, run.server_start_ticks)


def end_disk_server(run: Run | None, *, patience: float = _END_SECONDS) -> None:
    """Return when the server of a QEMU that is gone has flushed and closed its images.

    After ``patience`` seconds it is told to; it is never killed.
    """
    process = process_of_server(run)
    if process is None or process.wait(patience):
        return
    process.signal(signal.SIGTERM)
    if not process.wait(_END_SECONDS):
        raise HostError(
            f"the server of the machine's disks (process {process.pid}) does not end",
            hint="it may hang in the kernel: see its state in /proc, and the disk's",
        )


def ensure_disk_server(paths: VmPaths, record: Record, machine: Machine) -> None:
    """Start the server of a running machine again if it was killed; QEMU connects anew."""
    run = record.run
    if run is None or not run.served:
        return
    process = process_of_server(run)
    if process is not None and process.alive():
        return
    started = start_disk_server(paths, record, machine, run.served, qemu_runs=True)
    if started is not None:
        run = with_server(run, started)
        write_record(paths.record, msgspec.structs.replace(record, run=run))


def with_server(run: Run, process: ProcessId | None) -> Run:
    """Return ``run`` with the process that serves its images."""
    if process is None:
        return run
    return msgspec.structs.replace(
        run, server_pid=process.pid, server_start_ticks=process.start_ticks
    )
