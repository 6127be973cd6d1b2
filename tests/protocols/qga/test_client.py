import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.protocols.conftest import receive_until
from wirt.errors import CommandRefused, GuestError, PeerClosed, ProtocolError, Timeout
from wirt.protocols.qga.client import AgentClient

Serve = Callable[[Callable[[socket.socket], None]], Path]


@pytest.fixture
def agent(tmp_path: Path, find_program: Callable[[str], str]) -> Iterator[AgentClient]:
    """The real agent, run on the host; tests ask nothing of it that changes the host."""
    path = tmp_path / "qga"
    command = [find_program("qemu-ga"), "-m", "unix-listen", "-p", str(path)]
    process = subprocess.Popen(
        [*command, "-t", str(tmp_path)], stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        give_up = time.monotonic() + 60
        with _connected(path, give_up) as client:
            yield client
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # also what it runs
        process.wait()


def _connected(path: Path, give_up: float) -> AgentClient:
    """Connect when it listens: its socket has a name a moment before."""
    while True:
        try:
            return AgentClient.connect(path, timeout=60)
        except PeerClosed:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.01)


@pytest.mark.needs_tool("qemu-ga")
def test_the_real_agent_answers_typed(agent: AgentClient):
    agent.ping()
    info = agent.info()
    assert "guest-exec" in {command.name for command in info.supported_commands}
    assert agent.osinfo().kernel_release
    assert "lo" in {interface.name for interface in agent.network_interfaces()}
    assert agent.host_name() == socket.gethostname()
    assert agent.freeze_status() == "thawed"
    assert isinstance(agent.users(), list)


@pytest.mark.needs_tool("qemu-ga")
def test_the_real_agent_runs_a_program(agent: AgentClient):
    script = "cat; printf '\\000\\377' >&2; echo $X; exit 7"
    status = agent.exec("/bin/sh", ["-c", script], env={"X": "y"}, stdin=b"in\xff", timeout=60)
    assert status.exitcode == 7
    assert status.out_data == b"in\xffy\n"
    assert status.err_data == b"\x00\xff"


@pytest.mark.needs_tool("qemu-ga")
def test_a_program_ended_by_a_signal_has_its_number(agent: AgentClient):
    status = agent.exec("/bin/sh", ["-c", "kill -9 $$"], timeout=60)
    assert status.signal == 9


@pytest.mark.needs_tool("qemu-ga")
def test_a_program_that_does_not_exist_is_a_guest_error(agent: AgentClient):
    with pytest.raises(GuestError, match="cannot run /no/such"):
        agent.exec("/no/such", timeout=60)
    agent.ping()


@pytest.mark.needs_tool("qemu-ga")
def test_a_program_that_takes_too_long_is_a_timeout(agent: AgentClient):
    with pytest.raises(Timeout):
        agent.exec("/bin/sleep", ["600"], timeout=0.2)
    agent.ping()


@pytest.mark.needs_tool("qemu-ga")
def test_a_file_is_written_and_read_back(agent: AgentClient, tmp_path: Path):
    path = str(tmp_path / "file")
    handle = agent.file_open(path, "wb")
    assert agent.file_write(handle, bytes(range(256)) * 100) == 25600
    agent.file_close(handle)
    handle = agent.file_open(path)
    assert agent.file_read(handle, 1000) == (bytes(range(256)) * 4)[:1000]
    assert len(agent.file_read(handle)) == 24600
    assert agent.file_read(handle) == b""
    agent.file_close(handle)
    with pytest.raises(CommandRefused):
        agent.file_open(str(tmp_path / "none"))


@pytest.mark.needs_tool("qemu-ga")
def test_an_unknown_command_is_refused_with_its_class(agent: AgentClient):
    with pytest.raises(CommandRefused) as refusal:
        agent.execute("guest-no-such", reply=str)
    assert refusal.value.error_class == "CommandNotFound"


def answer_sync(peer: socket.socket) -> None:
    """Answer the next request to synchronise, not the commands before it."""
    request = receive_until(peer, b"\xff")
    request = request.rpartition(b"\xff")[2]
    while b"\n" not in request:
        request += receive_until(peer, b"\n")
    sync_id = json.loads(request)["arguments"]["id"]
    peer.sendall(b'{"return": {"stale": 1}}\n{"error": {"class": "a", "desc": "parse"}}\n')
    peer.sendall(b'\xff{"return": %d}\n' % sync_id)


def wait_until_closed(peer: socket.socket) -> None:
    while peer.recv(65536):
        pass


def test_stale_answers_before_the_sync_are_not_taken(serve: Serve):
    def behave(peer: socket.socket) -> None:
        answer_sync(peer)
        peer.recv(4096)
        peer.sendall(b'{"return": {"host-name": "fresh"}}\n')
        wait_until_closed(peer)

    with AgentClient.connect(serve(behave), timeout=60) as agent:
        assert agent.host_name() == "fresh"


def test_a_guest_without_an_agent_is_a_timeout(serve: Serve):
    with pytest.raises(Timeout, match="did not answer") as error:
        AgentClient.connect(serve(wait_until_closed), timeout=0.2)
    assert "qemu-guest-agent" in error.value.hint


def test_after_a_timeout_the_client_synchronises_again(serve: Serve):
    def behave(peer: socket.socket) -> None:
        answer_sync(peer)
        answer_sync(peer)  # the guest-ping before it is never answered
        peer.recv(4096)
        peer.sendall(b'{"return": {"host-name": "fresh"}}\n')
        wait_until_closed(peer)

    with AgentClient.connect(serve(behave), timeout=60) as agent:
        with pytest.raises(Timeout):
            agent.ping(timeout=0.1)
        assert agent.host_name() == "fresh"


def test_shutdown_tells_whether_the_agent_was_still_there(serve: Serve):
    def behave(peer: socket.socket) -> None:
        answer_sync(peer)
        peer.recv(4096)
        peer.sendall(b'{"return": {}}\n')
        wait_until_closed(peer)

    with AgentClient.connect(serve(behave), timeout=60) as agent:
        assert agent.shutdown()


def test_a_refused_shutdown_is_told(serve: Serve):
    def behave(peer: socket.socket) -> None:
        answer_sync(peer)
        peer.recv(4096)
        peer.sendall(b'{"error": {"class": "GenericError", "desc": "no"}}\n{"return": {}}\n')
        wait_until_closed(peer)

    with AgentClient.connect(serve(behave), timeout=60) as agent, pytest.raises(CommandRefused):
        agent.shutdown()


def test_an_agent_that_goes_down_at_once_is_no_error(serve: Serve):
    def behave(peer: socket.socket) -> None:
        answer_sync(peer)
        receive_until(peer, b"guest-ping")

    with AgentClient.connect(serve(behave), timeout=60) as agent:
        assert not agent.shutdown(timeout=5)


@pytest.mark.parametrize("answer", [b"garbage\n", b'{"return": 5}\n', b"[]\n", b"x" * 5_000_000])
def test_a_hostile_answer_is_a_protocol_error(serve: Serve, answer: bytes):
    def behave(peer: socket.socket) -> None:
        answer_sync(peer)
        peer.recv(4096)
        peer.sendall(answer)
        wait_until_closed(peer)

    with AgentClient.connect(serve(behave), timeout=60) as agent, pytest.raises(ProtocolError):
        agent.info()


def test_a_guest_that_floods_instead_of_synchronising_is_a_timeout(serve: Serve):
    def behave(peer: socket.socket) -> None:
        while True:
            peer.sendall(b'\xff{"return": 1}\n' * 1000)

    with pytest.raises(Timeout):
        AgentClient.connect(serve(behave), timeout=0.3)


def test_a_read_that_returns_more_than_asked_for_is_a_protocol_error(serve: Serve):
    def behave(peer: socket.socket) -> None:
        answer_sync(peer)
        peer.recv(4096)
        peer.sendall(b'{"return": {"count": 6, "buf-b64": "AAAAAAAA", "eof": false}}\n')
        wait_until_closed(peer)

    with AgentClient.connect(serve(behave), timeout=60) as agent, pytest.raises(ProtocolError):
        agent.file_read(1, 5)


def test_the_end_of_the_socket_is_peer_closed(serve: Serve):
    with AgentClient.connect(serve(answer_sync), timeout=60) as agent, pytest.raises(PeerClosed):
        agent.ping()
