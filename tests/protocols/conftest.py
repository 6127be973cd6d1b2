"""Peers for protocol tests: a real QEMU without a machine, and servers that misbehave."""

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest


def require_program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        message = f"{name} is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture
def find_program() -> Callable[[str], str]:
    """Return a program's path; skip the test, or fail it in CI, when it is missing."""
    return require_program


@contextmanager
def qemu_without_machine(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    program = require_program("qemu-system-x86_64")
    listener = socket.socket(socket.AF_UNIX)
    folder = os.open(path.parent, os.O_PATH)
    listener.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)
    listener.listen(1)
    fd = listener.fileno()
    machine = ["-M", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S"]
    monitor = ["-chardev", f"socket,id=q,fd={fd},server=on,wait=off"]
    command = [program, *machine, *monitor, "-mon", "chardev=q,mode=control"]
    process = subprocess.Popen(command, pass_fds=[fd])
    listener.close()
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[Path]:
    """Path of the QMP socket of a QEMU without a machine."""
    with qemu_without_machine(tmp_path / "qmp"):
        yield tmp_path / "qmp"


def receive_until(peer: socket.socket, mark: bytes) -> bytes:
    """Return what comes until ``mark`` is in it: requests may come apart, or several at once."""
    received = b""
    while mark not in received:
        more = peer.recv(4096)
        if not more:
            raise ConnectionResetError
        received += more
    return received


Behaviour = Callable[[socket.socket], None]
LONG = 120.0  # seconds: nothing takes so long, and nothing may hang


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Behaviour], Path]]:
    """Serve one connection by a function, in a thread; what it meant to send may break off."""
    with ExitStack() as stack:

        def start(behave: Behaviour) -> Path:
            path = tmp_path / f"peer{time.monotonic_ns()}"
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(path))
            listener.listen(1)

            def run() -> None:
                with suppress(OSError):
                    connection = listener.accept()[0]
                    with connection:
                        connection.settimeout(LONG)
                        behave(connection)

            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            stack.callback(thread.join, 20)
            return path

        yield start
