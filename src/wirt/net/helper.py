"""Small processes beside the machines (switches, cables, DHCP), started to live on by themselves.

None of them is a daemon of wirt's: each is a program of the distribution or a script of a
page. Who starts one hands it the run lock of the thing it serves, so that "held" means that
it lives, and writes down its name, with which it is ended and never another process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from wirt.errors import HostError, Timeout
from wirt.host.failpoint import failpoint
from wirt.host.process import describe_end, detach, find_program, spawn
from wirt.host.process_id import ProcessId

START_SECONDS = 30.0
_POLL_SECONDS = 0.005
_WORDS_BYTES = 8192


def start(
    argv: list[str],
    *,
    what: str,
    ready: Callable[[str], bool],
    inherit: Collection[int] = (),
    stdin: int = subprocess.DEVNULL,
    timeout: float = START_SECONDS,
) -> ProcessId:
    """Start a process that lives on, and wait until it is ready, given what it said so far.

    Raises HostError with its own words if it ends, Timeout after ``timeout`` seconds.
    """
    read_fd, write_fd = os.pipe()
    # What it says later goes nowhere, and must not end it.
    line = [find_program("env"), "--ignore-signal=PIPE", *argv]
    try:
        process = spawn(
            line, stdin=stdin, stdout=write_fd, stderr=write_fd,
            pass_fds=inherit, new_session=True, cwd="/",
        )  # fmt: skip
    except BaseException:
        os.close(read_fd)
        raise
    finally:
        os.close(write_fd)
    failpoint("helper-begun")
    try:
        return _await(process, read_fd, what, ready, time.monotonic() + timeout)
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        os.close(read_fd)


def _await(
    process: subprocess.Popen[bytes],
    words_fd: int,
    what: str,
    ready: Callable[[str], bool],
    deadline: float,
) -> ProcessId:
    os.set_blocking(words_fd, False)
    said = ""
    while True:
        said += _read(words_fd)
        if process.poll() is not None:
            said += _read(words_fd)
            raise HostError(f"{what} {describe_end(process.returncode)}: {_last(said)}")
        if ready(said):
            break
        if time.monotonic() > deadline:
            raise Timeout(f"{what} did not become ready: {_last(said)}")
        time.sleep(_POLL_SECONDS)
    found = ProcessId.of(process.pid)
    if found is None:
        process.wait()
        raise HostError(f"{what} {describe_end(process.returncode)}: {_last(said)}")
    detach(process)
    return found


def _read(fd: int) -> str:
    try:
        return os.read(fd, _WORDS_BYTES).decode(errors="replace")
    except BlockingIOError:
        return ""


def _last(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return "; ".join(lines[-3:])[:400] or "it said nothing"


@contextmanager
def endless_input() -> Iterator[tuple[int, int]]:
    """Yield an input that never ends, and a descriptor to inherit that keeps it so.

    vde_switch and wirefilter leave when their standard input ends.
    """
    read_fd, write_fd = os.pipe()
    try:
        yield read_fd, write_fd
    finally:
        os.close(read_fd)
        os.close(write_fd)


def end(process: ProcessId, *, patience: float = 5.0) -> None:
    """Ask a process to end, then make it. Raises HostError if it is not ours to end."""
    with contextlib.suppress(ProcessLookupError):
        process.signal(signal.SIGTERM)
    if not process.wait(patience):
        process.kill()
        process.wait(patience)
