"""The TPM of a machine: a swtpm beside its QEMU, which lives and dies with that.

The two are joined by a pair of sockets without a name. swtpm is a child of the process that
becomes QEMU (``wirt.vm.beside``), so that the kernel ends it when QEMU ends: whatever wirt
process is killed, none stays behind. It calls its directory ``.``: a machine's directory may
be moved while it runs.

A machine that is frozen has the TPM's state among its devices, where QEMU puts it: the QEMU
that loads them fills a TPM of its own. Only of a machine that is down the files are copied.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import msgspec

from wirt.errors import HostError
from wirt.host.confine import confinement
from wirt.host.process import find_program, mortal
from wirt.host.process_id import ProcessId
from wirt.spec.machine import Machine
from wirt.store.atomic import copy_file, host_error
from wirt.store.record import Record, Run
from wirt.vm.state import boot_id

_BEGIN_SECONDS = 60.0
_END_SECONDS = 15.0
_STATE = re.compile(r"tpm2?-00\.(permall|savestate|volatilestate)")
_MAX_BYTES = 4 << 20

Spawn = Callable[[list[str], Collection[int]], "subprocess.Popen[bytes]"]


class Tpm(msgspec.Struct, frozen=True):
    """A TPM that waits for its QEMU: how it is started, and both ends of their connection."""

    line: list[str]
    directory: str
    fd: int
    qemu_fd: int


@contextmanager
def joined(machine: Machine, directory: str, record: Record) -> Iterator[Tpm | None]:
    """Yield the machine's TPM, if it has one, to start a QEMU with.

    Raises MissingDependency without swtpm, HostError.
    """
    if machine.tpm.version == "none":
        yield None
        return
    make_directory(directory, record)
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        fd, qemu_fd = (end.fileno() for end in ends)
        yield Tpm(_line(machine, record, fd), directory, fd, qemu_fd)
    finally:
        for end in ends:
            end.close()


def make_directory(directory: str, record: Record) -> None:
    """Make the directory of a TPM unless it is there. Raises HostError."""
    try:
        os.makedirs(directory, 0o700, exist_ok=True)
        if record.uid:
            os.chown(directory, record.uid, record.uid)
    except OSError as error:
        raise host_error(error, directory) from error


def _line(machine: Machine, record: Record, fd: int) -> list[str]:
    words = [find_program("swtpm"), "socket", "--tpmstate", "dir=.,mode=0600"]
    words += ["--ctrl", f"type=unixio,clientfd={fd}", "--terminate"]
    if machine.tpm.version == "2.0":
        words.append("--tpm2")
    return [*confinement(record.uid, kvm=False), *mortal(words)]


def spawn_with(
    tpm: Tpm, line: list[str], inherit: Collection[int], spawn: Spawn
) -> tuple[subprocess.Popen[bytes], ProcessId | None]:
    """Start a QEMU and its TPM; return both. The second is None if it has ended already.

    ``spawn`` starts a line with the descriptors that it shall have.
    """
    pid_read, pid_write = os.pipe()
    settings_fd = os.memfd_create("wirt-tpm")
    try:
        settings = {
            "line": line,
            "tpm_line": tpm.line,
            "tpm_directory": tpm.directory,
            "tpm_fd": tpm.fd,
            "pid_fd": pid_write,
            "qemu_fds": [*inherit, tpm.qemu_fd],
        }
        os.write(settings_fd, msgspec.json.encode(settings))
        os.lseek(settings_fd, 0, os.SEEK_SET)
        script = os.path.join(os.path.dirname(__file__), "beside.py")
        process = spawn(
            [sys.executable, "-I", "-S", script, str(settings_fd)],
            [settings_fd, pid_write, tpm.fd, tpm.qemu_fd, *inherit],
        )
        os.close(pid_write)
        pid_write = -1
        try:
            return process, _read_pid(pid_read)
        except BaseException:  # Ctrl-C: nobody else knows of the process yet
            process.kill()
            process.wait()
            raise
    finally:
        for fd in (settings_fd, pid_read):
            os.close(fd)
        if pid_write >= 0:
            os.close(pid_write)


def _read_pid(fd: int) -> ProcessId | None:
    ready, _, _ = select.select([fd], [], [], _BEGIN_SECONDS)
    word = os.read(fd, 20) if ready else b""
    return ProcessId.of(int(word)) if word.isdigit() else None


def with_tpm(run: Run, tpm: ProcessId | None) -> Run:
    """Return ``run`` with the process of its TPM."""
    if tpm is None:
        return run
    return msgspec.structs.replace(run, tpm_pid=tpm.pid, tpm_start_ticks=tpm.start_ticks)


def await_end(run: Run | None) -> None:
    """Return when the TPM of a QEMU that is gone has ended as well. Raises HostError."""
    if run is None or run.tpm is None or run.boot_id != boot_id() or run.tpm.wait(_END_SECONDS):
        return
    run.tpm.kill()
    if not run.tpm.wait(_END_SECONDS):
        raise HostError(
            f"the machine's TPM (swtpm, process {run.tpm_pid}) does not end",
            hint="it may hang in the kernel: see its state in /proc",
        )


def copy_state(source: str, target: str) -> None:
    """Copy what a TPM keeps, while nothing runs in ``source``. Raises HostError."""
    try:
        os.mkdir(target, 0o700)
        names = sorted(filter(_STATE.fullmatch, os.listdir(source)))
    except OSError as error:
        raise host_error(error, error.filename or target) from error
    for name in names:
        copy_file(os.path.join(source, name), os.path.join(target, name), limit=_MAX_BYTES)


def take_next(directory: str, following: str) -> None:
    """Let the TPM of a second QEMU be the machine's. Can be repeated."""
    if os.path.isdir(following):
        shutil.rmtree(directory, ignore_errors=True)
        os.rename(following, directory)
