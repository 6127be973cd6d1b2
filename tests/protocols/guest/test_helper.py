"""The client against the real helper script."""

import os
import re
import secrets
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path

import pytest

from tests.protocols.guest.conftest import Clock
from wirt.errors import GuestError, HostError, PeerClosed, Timeout, UsageError
from wirt.protocols.guest.client import GuestSession
from wirt.protocols.guest.codec import (
    MAGIC,
    STDIN_WINDOW,
    FrameType,
    encode_frame,
    encode_frames,
    encode_hello,
    encode_request,
)
from wirt.protocols.guest.messages import Identity

pytestmark = pytest.mark.needs_tool("perl")

LIMIT = 120.0  # seconds: nothing here takes long, and nothing may hang


class Output:
    """Collects what a command writes."""

    def __init__(self) -> None:
        self.data = b""

    def __call__(self, data: bytes) -> None:
        self.data += data


def shell(guest: GuestSession, script: str, **options: object) -> tuple[int, bytes, bytes]:
    out, err = Output(), Output()
    code = guest.exec(["sh", "-c", script], stdout=out, stderr=err, **{"timeout": LIMIT, **options})
    return code, out.data, err.data


def is_gone(pid: int) -> bool:
    give_up = time.monotonic() + LIMIT
    while time.monotonic() < give_up:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


@contextmanager
def running(function: Callable[..., None], *arguments: object) -> Iterator[None]:
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_the_helper_needs_nothing_but_perl_base(find_program: Callable[[str], str]):
    listed = subprocess.run(
        [find_program("dpkg"), "-L", "perl-base"], capture_output=True, text=True, check=True
    ).stdout
    script = (resources.files("wirt.catalog") / "guest" / "wirt-guest").read_text()
    modules = set(re.findall(r"^use ([\w:]+)", script, re.MULTILINE)) - {"constant", "strict"}
    assert modules >= {"POSIX", "Fcntl", "Errno"}
    for module in modules:
        assert f"/perl-base/{module.replace('::', '/')}.pm\n" in listed


def test_output_and_exit_code_come_back(guest: GuestSession):
    assert shell(guest, "echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n")


def test_one_session_runs_many_commands(guest: GuestSession):
    for code in range(5):
        assert guest.exec(["sh", "-c", f"exit {code}"], timeout=LIMIT) == code
    assert guest.info().version == 1


def test_every_byte_passes_both_ways(guest: GuestSession):
    data = bytes(range(256)) * 1000
    out = Output()
    assert guest.exec(["cat"], stdin=data, stdout=out, timeout=LIMIT) == 0
    assert out.data == data


def test_the_magic_itself_passes_both_ways(guest: GuestSession):
    data = (MAGIC * 3 + secrets.token_bytes(50)) * 2000
    out = Output()
    guest.exec(["cat"], stdin=data, stdout=out, timeout=LIMIT)
    assert out.data == data
    assert shell(guest, 'printf %s "$1"; printf %s "$X"', env={"X": "a\r\nb"})[1] == b"a\r\nb"


def test_arguments_are_bytes_and_not_words_of_a_shell(guest: GuestSession):
    out = Output()
    guest.exec(["printf", "%s|", "a b", b"\xff$HOME", ""], stdout=out, timeout=LIMIT)
    assert out.data == b"a b|\xff$HOME||"


def test_a_long_command_line_passes(guest: GuestSession):
    out = Output()
    words = ["x" * 100_000] * 5
    guest.exec(["sh", "-c", 'printf %s "$*" | wc -c', "sh", *words], stdout=out, timeout=LIMIT)
    assert int(out.data) == 500_004


def test_large_input_from_a_descriptor_arrives_whole(guest: GuestSession, tmp_path: Path):
    data = secrets.token_bytes(8 << 20)
    (tmp_path / "in").write_bytes(data)
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as target:
        code = guest.exec(["cat"], stdin=source.fileno(), stdout=target.fileno(), timeout=LIMIT)
    assert code == 0
    assert (tmp_path / "out").read_bytes() == data


def test_both_outputs_at_once_do_not_mix(guest: GuestSession):
    script = "head -c 3000000 /dev/zero & head -c 2000000 /dev/zero | tr '\\0' e >&2; wait"
    code, out, err = shell(guest, script)
    assert (code, len(out), len(err)) == (0, 3_000_000, 2_000_000)
    assert set(out) == {0}
    assert set(err) == {ord("e")}


def test_input_that_nobody_reads_does_not_hang(guest: GuestSession):
    assert guest.exec(["true"], stdin=bytes(4 << 20), timeout=LIMIT) == 0
    code, out, _ = shell(guest, "exec <&-; sleep 0.1; echo done", stdin=bytes(4 << 20))
    assert (code, out) == (0, b"done\n")


def test_a_missing_program_is_127_with_words(guest: GuestSession):
    err = Output()
    assert guest.exec(["no-such-program"], stderr=err, timeout=LIMIT) == 127
    assert err.data == b"no-such-program: No such file or directory\n"


def test_a_file_that_cannot_be_executed_is_126_with_words(guest: GuestSession):
    err = Output()
    assert guest.exec(["/etc/passwd"], stderr=err, timeout=LIMIT) == 126
    assert err.data == b"/etc/passwd: Permission denied\n"


def test_a_missing_directory_is_a_guest_error_and_the_session_lives(guest: GuestSession):
    with pytest.raises(GuestError, match="cannot change to /no/such: No such file"):
        guest.exec(["true"], cwd="/no/such", timeout=LIMIT)
    assert guest.exec(["true"], timeout=LIMIT) == 0


def test_a_missing_user_is_a_guest_error(guest: GuestSession):
    with pytest.raises(GuestError, match="no user nosuchuser"):
        guest.exec(["true"], user="nosuchuser", timeout=LIMIT)


def test_environment_and_directory_are_set(guest: GuestSession):
    _, out, _ = shell(guest, "echo $A$PATH; pwd", env={"A": "é=", "PATH": "/bin"}, cwd="/usr")
    assert out.decode() == "é=/bin\n/usr\n"
    _, out, _ = shell(guest, "echo $HOME; pwd")
    assert out == b"/root\n/\n"


@pytest.mark.needs_root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_command_can_run_as_another_user(guest: GuestSession):
    _, out, _ = shell(guest, "id -un; id -gn; echo $HOME $USER", user="daemon")
    assert out == b"daemon\ndaemon\n/usr/sbin daemon\n"


def test_a_zero_byte_in_an_argument_is_a_usage_error(guest: GuestSession):
    with pytest.raises(UsageError):
        guest.exec(["echo", "a\0b"], timeout=LIMIT)


def test_signals_are_as_the_shell_counts_them(guest: GuestSession):
    assert shell(guest, "kill -9 $$")[0] == 137


def test_a_signal_reaches_the_command_even_when_its_input_is_full(guest: GuestSession):
    started = threading.Event()

    def stop() -> None:
        started.wait(LIMIT)
        guest.send_signal(signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    code = guest.exec(
        ["sh", "-c", "echo ready; exec sleep 600"],
        stdin=bytes(STDIN_WINDOW * 4),
        stdout=lambda data: started.set(),
        timeout=LIMIT,
    )
    thread.join()
    assert code == 128 + signal.SIGTERM


def test_a_command_that_takes_too_long_is_killed(helper: socket.socket, clock: Clock):
    out = Output()

    def until_it_runs(data: bytes) -> None:
        out(data)
        if b"\n" in out.data:
            clock.ahead = 2 * LIMIT

    with (
        GuestSession.from_socket(helper, timeout=LIMIT) as guest,
        pytest.raises(Timeout, match="did not end in time"),
    ):
        guest.exec(["sh", "-c", "echo $$; exec sleep 600"], stdout=until_it_runs, timeout=LIMIT)
    assert is_gone(int(out.data))


def test_nothing_survives_the_end_of_the_session(helper: socket.socket):
    # A shell that ignores SIGHUP, a child of it, and one in a process group of its own.
    script = "trap '' HUP; sleep 600 & echo $$ $!; set -m; sleep 600 & echo $!; wait"
    out = Output()

    def collect(data: bytes) -> None:
        out(data)
        if out.data.count(b"\n") == 2:
            raise KeyboardInterrupt

    guest = GuestSession.from_socket(helper, timeout=LIMIT)
    with guest, pytest.raises(KeyboardInterrupt):
        guest.exec(["bash", "-c", script], stdout=collect, timeout=LIMIT)
    pids = [int(word) for word in out.data.split()]
    assert len(pids) == 3
    assert all(is_gone(pid) for pid in pids)


def test_a_child_that_keeps_the_output_open_does_not_delay_the_exit(guest: GuestSession):
    code, out, _ = shell(guest, "sleep 600 & echo $!; exit 3")
    with suppress(ProcessLookupError):
        os.kill(int(out), signal.SIGKILL)
    assert code == 3


def test_a_terminal_echoes_and_has_a_size(guest: GuestSession):
    out = Output()
    script = "test -t 0 && test -t 2 && stty size && read line && echo got $line"
    code = guest.exec(
        ["sh", "-c", script], stdin=b"hello\r", stdout=out, pty_size=(33, 77), timeout=LIMIT
    )
    assert code == 0
    assert b"33 77\r\n" in out.data
    assert b"hello" in out.data.replace(b"got hello", b"")
    assert b"got hello\r\n" in out.data


def test_the_end_of_input_is_typed_into_a_terminal(guest: GuestSession):
    out = Output()
    code = guest.exec(["cat"], stdin=b"line\r", stdout=out, pty_size=(24, 80), timeout=LIMIT)
    assert code == 0
    assert out.data.count(b"line\r\n") == 2


def test_control_c_in_a_terminal_interrupts(guest: GuestSession):
    reading, writing = os.pipe()

    def type_it(data: bytes) -> None:
        os.write(writing, b"\x03")

    try:
        code = guest.exec(
            ["sh", "-c", "echo ready; sleep 600"],
            stdin=reading,
            stdout=type_it,
            pty_size=(24, 80),
            timeout=LIMIT,
        )
    finally:
        os.close(reading)
        os.close(writing)
    assert code == 128 + signal.SIGINT


def test_a_terminal_learns_its_new_size(guest: GuestSession):
    out = Output()

    def resize(data: bytes) -> None:
        out(data)
        if data.startswith(b"ready"):
            guest.resize(50, 100)

    script = "trap 'stty size; exit 4' WINCH; echo ready; while :; do sleep 0.01; done"
    code = guest.exec(["sh", "-c", script], stdout=resize, pty_size=(24, 80), timeout=LIMIT)
    assert code == 4
    assert b"50 100" in out.data


def test_all_output_of_a_terminal_arrives_before_the_exit(guest: GuestSession):
    for _ in range(10):
        _, out, _ = shell(guest, "seq 1 3000", pty_size=(24, 80))
        assert out.endswith(b"\r\n3000\r\n")


def test_a_slow_reader_holds_the_command_back(helper: socket.socket, clock: Clock):
    reading, writing = os.pipe()

    def end_when_the_pipe_is_full(guest: GuestSession) -> None:
        give_up = time.monotonic() + LIMIT
        while select.select([], [writing], [], 0)[1] and time.monotonic() < give_up:
            time.sleep(0.01)
        clock.ahead = 2 * LIMIT
        guest.send_signal(signal.SIGCONT)  # wakes who waits in exec

    try:
        with (
            GuestSession.from_socket(helper, timeout=LIMIT) as guest,
            running(end_when_the_pipe_is_full, guest),
            pytest.raises(Timeout, match="did not end in time"),
        ):
            guest.exec(["sh", "-c", "echo $$; exec yes"], stdout=writing, timeout=LIMIT)
        os.close(writing)
        writing = -1
        with os.fdopen(reading, "rb") as pipe:
            reading = -1
            pid = int(pipe.readline())
            assert len(pipe.read()) <= 64 << 10  # what the pipe held
    finally:
        for fd in (reading, writing):
            if fd >= 0:
                os.close(fd)
    assert is_gone(pid)


def test_an_output_that_broke_is_a_host_error(helper: socket.socket):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        with (
            GuestSession.from_socket(helper, timeout=LIMIT) as guest,
            pytest.raises(HostError, match="Broken pipe"),
        ):
            guest.exec(["yes"], stdout=writing, timeout=LIMIT)
    finally:
        os.close(writing)


@pytest.mark.parametrize(
    "stale",
    [
        b"garbage\0\xff" * 1000,
        MAGIC[:10],
        MAGIC + b"half a nonce",
        encode_hello(b"n" * 16),
        encode_hello(b"n" * 16) + encode_request([b"exec", b"asleep", b"a600"]),
        encode_hello(b"n" * 16) + encode_frames(FrameType.PART, b"x" * 100)[:-1],
        encode_hello(b"n" * 16) + encode_frame(FrameType.REQUEST, b"\xff" * 100),
        encode_hello(b"n" * 16) + b"no frame",
        encode_hello(b"n" * 16)
        + encode_request([b"exec", b"acat"])
        + encode_frame(FrameType.STDIN, b"abc")
        + b"\0\x03\xff",
    ],
)
def test_what_an_earlier_client_left_behind_does_no_harm(helper: socket.socket, stale: bytes):
    helper.sendall(stale)
    with GuestSession.from_socket(helper, timeout=LIMIT) as guest:
        assert shell(guest, "echo fresh") == (0, b"fresh\n", b"")


def test_a_new_hello_kills_what_ran(helper: socket.socket):
    helper.sendall(encode_hello(b"n" * 16))
    helper.sendall(encode_request([b"exec", b"ash", b"a-c", b"aecho @$$@; exec sleep 600"]))
    seen = b""
    while seen.count(b"@") < 2:
        seen += helper.recv(4096)
    with GuestSession.from_socket(helper, timeout=LIMIT) as guest:
        assert is_gone(int(seen.split(b"@")[1]))
        assert guest.exec(["true"], timeout=LIMIT) == 0


def test_input_beyond_the_window_ends_the_session(helper: socket.socket):
    helper.sendall(encode_hello(b"n" * 16))
    helper.sendall(encode_request([b"exec", b"asleep", b"a600"]))
    helper.sendall(encode_frames(FrameType.STDIN, bytes(STDIN_WINDOW + (1 << 20))))
    with GuestSession.from_socket(helper, timeout=LIMIT) as guest:
        assert guest.exec(["true"], timeout=LIMIT) == 0


def test_an_unknown_request_is_refused(helper: socket.socket):
    with GuestSession.from_socket(helper, timeout=LIMIT) as guest:
        helper.sendall(encode_request([b"frobnicate"]))
        with pytest.raises(GuestError, match="unknown request frobnicate"):
            guest.identity_answer(timeout=LIMIT)
        assert guest.info().kernel.startswith("Linux ")


def test_info_tells_what_the_guest_is(guest: GuestSession):
    info = guest.info()
    assert info.hostname == socket.gethostname()
    assert info.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert info.uptime > 0
    assert info.machine == os.uname().machine


def test_an_identity_of_nothing_changes_nothing_and_shows_fresh_random(guest: GuestSession):
    first = guest.set_identity(Identity(set_clock=False))
    second = guest.set_identity(Identity(set_clock=False))
    assert first.failed == {}
    assert first.uuid != second.uuid
    assert first.boot_id == second.boot_id


def test_a_card_that_is_not_there_is_said_and_the_other_steps_are_done(guest: GuestSession):
    wanted = Identity(set_clock=False, macs=(("02:00:00:00:00:01", "02:00:00:00:00:02"),))
    answer = guest.set_identity(wanted)
    assert answer.failed == {"macs": "no card has 02:00:00:00:00:01"}
    assert answer.uuid


def test_a_helper_that_ends_is_peer_closed(mortal_helper: socket.socket):
    with (
        GuestSession.from_socket(mortal_helper, timeout=LIMIT) as guest,
        pytest.raises(PeerClosed),
    ):
        guest.exec(["sh", "-c", "kill -9 $PPID"], timeout=LIMIT)
