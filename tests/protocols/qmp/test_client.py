import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec
import pytest

from tests.protocols.conftest import receive_until
from wirt.errors import CommandRefused, PeerClosed, ProtocolError, Timeout
from wirt.protocols.qmp.client import QmpClient
from wirt.protocols.qmp.messages import CommandInfo, KvmInfo, MachineInfo, ShutdownInfo, StatusInfo

Serve = Callable[[Callable[[socket.socket], None]], Path]

GREETING = (
    b'{"QMP": {"version": {"qemu": {"micro": 1, "minor": 2, "major": 7}, "package": ""}, '
    b'"capabilities": []}}\r\n'
)


def greet(peer: socket.socket) -> None:
    peer.sendall(GREETING)
    peer.recv(4096)
    peer.sendall(b'{"return": {}, "id": 1}\r\n')


def wait_until_closed(peer: socket.socket) -> None:
    while peer.recv(65536):
        pass


@pytest.mark.needs_qemu
def test_replies_of_a_real_qemu_are_typed(qemu: Path):
    with QmpClient.connect(qemu, timeout=60) as qmp:
        assert qmp.greeting.version.qemu.major >= 7
        assert qmp.execute("query-status", reply=StatusInfo).status == "prelaunch"
        assert "none" in {m.name for m in qmp.execute("query-machines", reply=list[MachineInfo])}
        names = {c.name for c in qmp.execute("query-commands", reply=list[CommandInfo])}
        assert "query-status" in names


@pytest.mark.needs_qemu
def test_a_long_answer_of_a_real_qemu_arrives_whole(qemu: Path):
    with QmpClient.connect(qemu, timeout=60) as qmp:
        schema = qmp.execute("query-qmp-schema", reply=list[dict[str, object]])
        assert len(schema) > 500


@pytest.mark.needs_qemu
def test_a_refused_command_carries_class_and_description(qemu: Path):
    with QmpClient.connect(qemu, timeout=60) as qmp:
        with pytest.raises(CommandRefused) as refusal:
            qmp.execute("no-such-command")
        assert refusal.value.error_class == "CommandNotFound"
        assert "no-such-command" in refusal.value.description
        qmp.execute("query-kvm", reply=KvmInfo)


@pytest.mark.needs_qemu
def test_events_are_collected_from_the_subscription_on(qemu: Path):
    with QmpClient.connect(qemu, timeout=60) as qmp, qmp.events("SHUTDOWN") as events:
        qmp.execute("quit")
        event = events.get(timeout=60)
        assert not event.data_as(ShutdownInfo).guest
        assert events.dropped == 0
        assert qmp.wait_event(["SHUTDOWN"], timeout=0) == event
        with pytest.raises(PeerClosed):
            qmp.wait_event(["NEVER"], timeout=60)


@pytest.mark.needs_qemu
def test_a_descriptor_is_passed(qemu: Path):
    reading, writing = os.pipe()
    try:
        with QmpClient.connect(qemu, timeout=60) as qmp:
            qmp.send_fd("gift", writing)
            os.close(writing)
            writing = -1
            qmp.execute("closefd", {"fdname": "gift"})
            assert os.read(reading, 1) == b""
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)


@pytest.mark.needs_qemu
def test_a_second_client_is_told_that_another_holds_the_socket(qemu: Path):
    with (
        QmpClient.connect(qemu, timeout=60),
        pytest.raises(Timeout, match="no QMP greeting") as error,
    ):
        QmpClient.connect(qemu, timeout=0.3)
    assert "one QMP client at a time" in error.value.hint


@pytest.mark.needs_qemu
def test_many_waiting_clients_end_in_a_timeout_too(qemu: Path):
    with ExitStack() as stack:
        stack.enter_context(QmpClient.connect(qemu, timeout=60))
        with suppress(BlockingIOError):
            while True:  # fill the backlog
                sock = stack.enter_context(socket.socket(socket.AF_UNIX))
                sock.setblocking(False)
                sock.connect(str(qemu))
        with pytest.raises(Timeout, match="too many clients"):
            QmpClient.connect(qemu, timeout=0.3)


def test_a_path_longer_than_an_address_is_connected(tmp_path: Path):
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    listener = socket.socket(socket.AF_UNIX)
    fd = os.open(folder, os.O_PATH)
    listener.bind(f"/proc/self/fd/{fd}/qmp")
    os.close(fd)
    listener.listen(1)

    def answer() -> None:
        peer = listener.accept()[0]
        with peer:
            greet(peer)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        QmpClient.connect(folder / "qmp", timeout=60).close()
    finally:
        thread.join()
        listener.close()


def test_a_socket_that_nobody_serves_is_named(tmp_path: Path):
    with pytest.raises(PeerClosed, match=r"nothing listens on .*/qmp"):
        QmpClient.connect(tmp_path / "qmp", timeout=5)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    with pytest.raises(PeerClosed, match="nothing listens"):
        QmpClient.connect(tmp_path / "dead", timeout=5)


def test_a_listener_is_known_by_its_process_id(serve: Serve):
    def behave(peer: socket.socket) -> None:
        greet(peer)
        wait_until_closed(peer)

    with QmpClient.connect(serve(behave), timeout=60) as qmp:
        assert qmp.peer_pid() == os.getpid()


def test_an_existing_socket_can_be_used():
    ours, theirs = socket.socketpair()
    with theirs:
        thread = threading.Thread(target=greet, args=[theirs])
        thread.start()
        QmpClient.from_socket(ours, timeout=60).close()
        thread.join()


def test_a_peer_that_never_answers_is_a_timeout(serve: Serve):
    def behave(peer: socket.socket) -> None:
        greet(peer)
        wait_until_closed(peer)

    with (
        QmpClient.connect(serve(behave), timeout=60) as qmp,
        pytest.raises(Timeout, match="did not answer stop in time"),
    ):
        qmp.execute("stop", timeout=0.1)


def test_a_peer_that_drips_does_not_extend_the_deadline(serve: Serve):
    def behave(peer: socket.socket) -> None:
        greet(peer)
        while True:
            peer.sendall(b" ")
            time.sleep(0.02)

    with QmpClient.connect(serve(behave), timeout=60) as qmp, pytest.raises(Timeout):
        qmp.execute("stop", timeout=0.3)


def test_a_peer_that_does_not_read_is_a_timeout(serve: Serve):
    done = threading.Event()

    def behave(peer: socket.socket) -> None:
        greet(peer)
        done.wait(20)

    with QmpClient.connect(serve(behave), timeout=60) as qmp, pytest.raises(Timeout):
        qmp.execute("stop", {"text": "x" * 10_000_000}, timeout=0.3)
    done.set()


@pytest.mark.parametrize(
    "answer",
    [
        b"\x00\xff\xfe garbage\n",
        b'{"return": 5, "id": 2}\n',
        b'{"return": {}, "id": 77}\n',
        b'{"return": {}, "id": "two"}\n',
        b'{"return": {}}\n',
        b"[]\n",
        GREETING,
    ],
)
def test_a_wrong_answer_is_a_protocol_error(serve: Serve, answer: bytes):
    def behave(peer: socket.socket) -> None:
        greet(peer)
        peer.recv(4096)
        peer.sendall(answer)
        wait_until_closed(peer)

    with QmpClient.connect(serve(behave), timeout=60) as qmp, pytest.raises(ProtocolError):
        qmp.execute("stop", timeout=60)


def test_a_peer_that_does_not_greet_as_qmp_is_a_protocol_error(serve: Serve):
    def behave(peer: socket.socket) -> None:
        peer.sendall(b'{"return": {}}\n')
        wait_until_closed(peer)

    with pytest.raises(ProtocolError, match="did not greet"):
        QmpClient.connect(serve(behave), timeout=60)


def test_a_refused_negotiation_keeps_the_reason(serve: Serve):
    def behave(peer: socket.socket) -> None:
        peer.sendall(GREETING)
        peer.recv(4096)
        peer.sendall(b'{"error": {"class": "GenericError", "desc": "not today"}, "id": 1}\n')
        wait_until_closed(peer)

    with pytest.raises(CommandRefused, match="not today"):
        QmpClient.connect(serve(behave), timeout=60)


def test_a_message_cut_off_by_the_end_is_peer_closed(serve: Serve):
    def behave(peer: socket.socket) -> None:
        greet(peer)
        peer.recv(4096)
        peer.sendall(b'{"return": {"stat')

    with (
        QmpClient.connect(serve(behave), timeout=60) as qmp,
        pytest.raises(PeerClosed, match="in the middle of a message"),
    ):
        qmp.execute("query-status", reply=StatusInfo, timeout=60)


def test_an_answer_is_found_in_a_flood_of_events(serve: Serve):
    def behave(peer: socket.socket) -> None:
        greet(peer)
        peer.recv(4096)
        peer.sendall(b'{"event": "NOISE", "data": {"x": "%s"}}\n' % (b"y" * 500) * 20_000)
        peer.sendall(b'{"return": {}, "id": 2}\n{"event": "WANTED"}\n')
        wait_until_closed(peer)

    with QmpClient.connect(serve(behave), timeout=60) as qmp, qmp.events("WANTED") as wanted:
        qmp.execute("stop", timeout=60)
        assert wanted.get(timeout=60).name == "WANTED"
        assert wanted.dropped == 0


def test_an_endless_flood_of_events_ends_at_the_deadline(serve: Serve):
    def behave(peer: socket.socket) -> None:
        greet(peer)
        while True:
            peer.sendall(b'{"event": "NOISE"}\n' * 1000)

    with QmpClient.connect(serve(behave), timeout=60) as qmp, pytest.raises(Timeout):
        qmp.execute("stop", timeout=0.3)


def test_a_late_answer_to_an_abandoned_command_is_dropped(serve: Serve):
    def behave(peer: socket.socket) -> None:
        greet(peer)
        receive_until(peer, b"query-kvm")
        peer.sendall(b'{"return": {"late": 1}, "id": 2}\n')
        peer.sendall(b'{"return": {"enabled": true, "present": true}, "id": 3}\n')
        wait_until_closed(peer)

    with QmpClient.connect(serve(behave), timeout=60) as qmp:
        with pytest.raises(Timeout):
            qmp.execute("stop", timeout=0.1)
        assert qmp.execute("query-kvm", reply=KvmInfo, timeout=60).enabled


def test_a_raw_reply_is_handed_over_unread(serve: Serve):
    def behave(peer: socket.socket) -> None:
        greet(peer)
        peer.recv(4096)
        peer.sendall(b'{"return": [1, {"a": 2}], "id": 2}\n')
        wait_until_closed(peer)

    with QmpClient.connect(serve(behave), timeout=60) as qmp:
        assert bytes(qmp.execute("x", reply=msgspec.Raw)) == b'[1, {"a": 2}]'


_MEASURED = """
import re, sys
from wirt.errors import ProtocolError
from wirt.protocols.qmp.client import QmpClient

def peak():  # in KiB; ru_maxrss would begin with the parent's
    with open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\\s+(\\d+)", file.read())[1])

before = peak()
try:
    QmpClient.connect(sys.argv[1], timeout=600)
except ProtocolError as error:
    print(error)
print((peak() - before) >> 10)
"""


def test_a_line_of_a_gibibyte_is_refused_in_bounded_memory(serve: Serve):
    def behave(peer: socket.socket) -> None:
        chunk = b"x" * (1 << 20)
        for _ in range(1024):
            peer.sendall(chunk)

    child = subprocess.run(
        [sys.executable, "-c", _MEASURED, str(serve(behave))],
        stdout=subprocess.PIPE,
        text=True,
        timeout=900,
        check=True,
    )
    message, grown = child.stdout.splitlines()
    assert "a line of more than 67108864 bytes" in message
    assert int(grown) < 100, "MiB above the 64 MiB bound"
