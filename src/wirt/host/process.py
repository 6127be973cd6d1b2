"""Processes: the one place that starts them, and a name for them that a pid reuse cannot steal."""

from __future__ import annotations

import logging
import os
import select
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from wirt.errors import HostError, MissingDependency, Timeout

log = logging.getLogger(__name__)

Stream = int | IO[bytes] | None

_PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "setpriv": "util-linux",
    "newuidmap": "uidmap",
}
_MORE_PATH = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def find_program(name: str) -> str:
    """Return the path of a program. Raises MissingDependency with the package to install."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_MORE_PATH])
    found = shutil.which(name, path=path)
    if found is None:
        package = _PACKAGES.get(os.path.basename(name), os.path.basename(name))
        raise MissingDependency(f"the program {name} is missing", hint=f"apt install {package}")
    return found


def spawn(
    argv: Sequence[str],
    *,
    stdin: Stream = subprocess.DEVNULL,
    stdout: Stream = None,
    stderr: Stream = None,
    pass_fds: Collection[int] = (),
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    new_session: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a program. Raises MissingDependency, HostError."""
    log.debug("spawn: %s", shlex.join(argv))
    try:
        return subprocess.Popen(
            [find_program(argv[0]), *argv[1:]],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=tuple(pass_fds),
            env=_environment(env or {}),
            cwd=cwd,
            start_new_session=new_session,
        )
    except OSError as error:
        raise HostError(f"{argv[0]} cannot be started: {error.strerror}") from error


def mortal(argv: Sequence[str]) -> list[str]:
    """Return ``argv`` so that the kernel kills the program when the calling thread ends.

    For helpers that must not outlive us, even if we are killed.
    """
    return [find_program("setpriv"), "--pdeathsig=KILL", "--", *argv]


def detach(process: subprocess.Popen[bytes]) -> None:
    """Let a child live on by itself; should it end while we are here, it is reaped."""
    threading.Thread(target=process.wait, name=f"reap {process.pid}", daemon=True).start()


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C.UTF-8", **extra}


@dataclass(frozen=True, slots=True)
class Completed:
    """A program that ended: exit code (negative: signal) and output."""

    returncode: int
    stdout: bytes
    stderr: bytes


def run(
    argv: Sequence[str],
    *,
    input: bytes = b"",  # noqa: A002 - the name that subprocess gave it
    timeout: float = 60.0,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> Completed:
    """Run a program to its end with captured output. Raises HostError, Timeout."""
    process = spawn(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=env, cwd=cwd,
    )  # fmt: skip
    try:
        out, err = process.communicate(input, timeout)
    except subprocess.TimeoutExpired as error:
        raise Timeout(f"{argv[0]} did not end within {timeout:.0f} s") from error
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    if check and process.returncode != 0:
        words = (err or out).decode(errors="replace").strip().splitlines()
        raise HostError(
            f"{argv[0]} failed with {process.returncode}: {words[-1] if words else 'no output'}"
        )
    return Completed(process.returncode, out, err)


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process named by pid and start time (clock ticks since boot): never a stranger's."""

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """Return the identity of a process that exists, or None."""
        ticks = _start_ticks(pid)
        return None if ticks is None else cls(pid, ticks)

    def alive(self) -> bool:
        """True while this very process runs (a zombie does not)."""
        return _start_ticks(self.pid) == self.start_ticks

    def _open(self) -> int | None:
        try:
            fd = os.pidfd_open(self.pid)
        except OSError:
            return None
        if self.alive():
            return fd
        os.close(fd)
        return None

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal to this very process; False if it is gone."""
        fd = self._open()
        if fd is None:
            return False
        try:
            signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            return False
        except PermissionError as error:
            raise HostError(f"you may not signal process {self.pid}") from error
        finally:
            os.close(fd)
        return True

    def kill(self) -> bool:
        """Kill this very process."""
        return self.signal(signal.SIGKILL)

    def wait(self, timeout: float) -> bool:
        """Wait for its end, also if it is no child of ours; False after ``timeout`` seconds."""
        fd = self._open()
        if fd is None:
            return True
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        deadline = time.monotonic() + timeout
        try:
            while (left := deadline - time.monotonic()) > 0:
                if poller.poll(left * 1000):
                    return True
            return False
        finally:
            os.close(fd)


def _start_ticks(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            after_name = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # Fields 3 (state) and 22 (starttime) of proc(5); the name may hold spaces and parentheses.
    return None if after_name[0] in {b"Z", b"X"} else int(after_name[19])
