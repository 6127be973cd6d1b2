"""The real helper script on one end of a socket pair: no guest needed."""

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources

import pytest

from wirt.protocols.guest.client import GuestSession


@contextmanager
def running_helper(perl: str, status: int = 0) -> Iterator[socket.socket]:
    """Run the helper until its stream ends; it must end by itself, with ``status``."""
    ours, theirs = socket.socketpair()
    script = resources.files("wirt.catalog") / "guest" / "wirt-guest"
    command = [perl, str(script), "--fd", str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        try:
            assert process.wait(120) == status
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def helper(find_program: Callable[[str], str]) -> Iterator[socket.socket]:
    """The host's end of a stream to the helper."""
    with running_helper(find_program("perl")) as stream:
        yield stream


@pytest.fixture
def mortal_helper(find_program: Callable[[str], str]) -> Iterator[socket.socket]:
    """The same for a helper that the test kills."""
    with running_helper(find_program("perl"), status=-signal.SIGKILL) as stream:
        yield stream


@pytest.fixture
def guest(helper: socket.socket) -> Iterator[GuestSession]:
    with GuestSession.from_socket(helper, timeout=120) as session:
        yield session


class Clock:
    """The clock of deadlines, which a test puts forward when what it waits for has happened."""

    ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("wirt.protocols.deadline.time", made)
    return made
