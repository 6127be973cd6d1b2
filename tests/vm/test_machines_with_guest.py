"""What a user does with a real Debian guest. One machine serves the whole module."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.vm.conftest import Cli
from wirt.errors import GuestError, Timeout, WirtError
from wirt.store.machines import machine_names
from wirt.store.record import read_record
from wirt.vm import state

pytestmark = [pytest.mark.needs_qemu, pytest.mark.needs_guest, pytest.mark.xdist_group("guest")]

FORWARDING = "nics[0].backend.forwards=[{host_port = 0, guest_port = 22}]"
SAME = ["-m", "1G"]
"""The settings of ``wirt_machine`` in this suite: so they share a template."""


@pytest.fixture(scope="module")
def vm(wirt_module_machine):
    """A running Debian 12."""
    return wirt_module_machine


@pytest.fixture(scope="module")
def guest_cli(wirt_context):
    return Cli(wirt_context.home.root)


def test_a_command_has_its_streams_and_exit_code(vm, guest_cli):
    done = guest_cli("exec", vm.name, "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 7)


def test_output_is_streamed_while_the_command_runs(vm, guest_cli):
    words = ["exec", vm.name, "--", "sh", "-c", "echo first; sleep 60"]
    with guest_cli.start(*words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"first\n"
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    await_end(vm, "-x", "sleep")


def await_end(vm, *words):
    """Wait until the guest has no such process: its helper ends what nobody waits for."""
    deadline = time.monotonic() + 120
    while vm.exec(["pgrep", *words], check=False).exit_code == 0:
        assert time.monotonic() < deadline, "the command runs on in the guest"
        time.sleep(0.5)


def test_input_environment_directory_and_user_reach_the_command(vm, guest_cli):
    done = guest_cli(
        "exec", "-e", "A=b c", "-w", "/tmp", "-u", "user", vm.name, "--",
        "sh", "-c", "pwd; echo $A; id -un; cat",
        stdin=bytes(range(256)),
    )  # fmt: skip
    assert done.stdout == b"/tmp\nb c\nuser\n" + bytes(range(256))


def test_a_command_that_does_not_exist_is_127(vm):
    assert vm.exec(["no-such-program"], check=False).exit_code == 127
    with pytest.raises(GuestError, match="no-such-program"):
        vm.exec(["no-such-program"])


def test_a_command_beyond_its_time_is_killed(vm):
    with pytest.raises(Timeout):
        vm.exec(["sleep", "7777"], timeout=1)
    await_end(vm, "-f", "sleep 7777")


def test_ten_commands_at_once_share_the_ports(vm, guest_cli):
    running = [
        guest_cli.start("exec", "-n", vm.name, "--", "sh", "-c", f"sleep 0.5; echo {number}",
                        stdout=subprocess.PIPE)
        for number in range(10)
    ]  # fmt: skip
    answers = [process.communicate(timeout=120)[0] for process in running]
    assert answers == [f"{number}\n".encode() for number in range(10)]


def test_a_terminal_is_a_terminal(vm, guest_cli):
    ours, theirs = pty.openpty()
    words = ["exec", "-t", vm.name, "--", "sh", "-c", "tty; stty size; echo done"]
    with guest_cli.start(*words, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL) as process:
        os.close(theirs)
        seen = _read_until(ours, b"done")
        assert b"/dev/pts/" in seen
        process.wait(60)
    os.close(ours)


def test_a_terminal_follows_the_size_of_ours(vm, guest_cli):
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    script = "stty size; until [ \"$(stty size)\" = '50 132' ]; do sleep 0.2; done; echo followed"
    words = ["exec", "-t", vm.name, "--", "sh", "-c", script]
    with guest_cli.start(*words, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL) as process:
        os.close(theirs)
        _read_until(ours, b"24 80")
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 132, 0, 0))
        process.send_signal(signal.SIGWINCH)
        _read_until(ours, b"followed")
        process.wait(60)
    os.close(ours)


def _read_until(fd, text, seconds=120):
    seen = b""
    deadline = time.monotonic() + seconds
    while text not in seen:
        assert select.select([fd], [], [], max(0, deadline - time.monotonic()))[0], seen
        seen += os.read(fd, 4096)
    return seen


def test_files_are_copied_both_ways(vm, guest_cli, tmp_path):
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    blob = os.urandom(300_000)
    (tree / "blob").write_bytes(blob)
    (tree / "sub" / "script").write_text("#!/bin/sh\n")
    (tree / "sub" / "script").chmod(0o755)
    assert guest_cli("cp", str(tree), f"{vm.name}:/root/").returncode == 0
    assert guest_cli("cp", str(tree / "blob"), f"{vm.name}:/root/renamed").returncode == 0
    assert vm.exec(["test", "-x", "/root/tree/sub/script"]).exit_code == 0
    back = tmp_path / "back"
    back.mkdir()
    assert guest_cli("cp", f"{vm.name}:/root/tree", str(back)).returncode == 0
    assert guest_cli("cp", f"{vm.name}:/root/renamed", str(back / "one")).returncode == 0
    assert (back / "tree" / "blob").read_bytes() == blob == (back / "one").read_bytes()
    assert os.access(back / "tree" / "sub" / "script", os.X_OK)
    missing = guest_cli("cp", f"{vm.name}:/nowhere", str(back))
    assert missing.returncode == GuestError.exit_code
    assert b"nowhere" in missing.stderr


def test_a_hostile_archive_of_a_guest_stays_inside(vm, guest_cli, tmp_path):
    """The guest's tar is replaced by one that sends names outside."""
    evil = (
        "mkdir -p /tmp/e && cd /tmp/e && echo x > x && "
        "tar --transform 's,^x,../../escaped,' -P -cf /tmp/evil.tar x && "
        "printf '#!/bin/sh\\nexec cat /tmp/evil.tar\\n' > /usr/local/bin/tar && "
        "chmod +x /usr/local/bin/tar"
    )
    vm.exec(["sh", "-c", evil])
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    try:
        done = guest_cli("cp", f"{vm.name}:/tmp/x", str(inner))
    finally:
        vm.exec(["rm", "/usr/local/bin/tar"])
    assert done.returncode == GuestError.exit_code
    assert b"hostile" in done.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b"]


def test_the_console_shows_and_takes_text_and_is_logged(vm, guest_cli):
    words = ["console", vm.name]
    with guest_cli.start(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as one:
        two = guest_cli.start(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        one.stdin.write(b"\necho seen-$((40+2))\n")
        one.stdin.flush()
        _read_until(one.stdout.fileno(), b"seen-42")
        _read_until(two.stdout.fileno(), b"seen-42")
        for process in (one, two):
            process.stdin.write(b"\x1d")
            process.stdin.close()
            assert process.wait(60) == 0
        two.stdout.close()
    assert b"seen-42" in guest_cli("logs", vm.name).stdout
    assert b"login" in vm.console_log() or b"root@" in vm.console_log()


def test_ssh_works_without_a_network(vm, guest_cli):
    done = guest_cli("ssh", vm.name, "--", "id", "-un")
    assert done.stdout == b"user\n", done.stderr
    assert guest_cli("ssh", "-l", "root", vm.name, "--", "exit", "3").returncode == 3


def test_a_screenshot_is_a_picture(vm, guest_cli, tmp_path):
    target = tmp_path / "screen.png"
    assert guest_cli("screenshot", vm.name, str(target)).returncode == 0
    assert target.read_bytes().startswith(b"\x89PNG\r\n")


def test_a_paused_guest_answers_after_it_was_resumed(vm):
    vm.pause()
    assert vm.status == "paused"
    vm.resume()
    assert vm.exec(["echo", "back"]).text == "back\n"


def test_the_line_that_is_shown_starts_the_same_machine(vm, guest_cli):
    line = guest_cli("show", "--argv", vm.name).stdout.decode()
    with open(f"/proc/{_life(vm).pid}/cmdline", "rb") as file:
        running = file.read().rstrip(b"\0").split(b"\0")
    shown = subprocess.run(
        ["sh", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True
    ).stdout.rstrip(b"\0").split(b"\0")  # fmt: skip
    assert shown[shown.index(b"-name") :] == running[running.index(b"-name") :]


def _life(vm):
    return state.look(vm.context.home.vm(vm.name)).record.run


def test_the_guest_has_what_wirt_promises(vm):
    assert "Debian" in vm.exec(["cat", "/etc/os-release"]).text
    assert vm.exec(["systemctl", "is-active", "qemu-guest-agent", "ssh"]).text.split() == [
        "active",
        "active",
    ]
    kernel = vm.exec(["sh", "-c", "grep VMGENID /boot/config-$(uname -r)"]).text
    assert "CONFIG_VMGENID=y" in kernel
    assert vm.exec(["sh", "-c", "ip -4 -o addr | grep -c 10.0.2.15"]).text == "1\n"


def test_stop_asks_the_guest_the_disk_survives_and_a_port_is_forwarded(vm, guest_cli):
    vm.exec(["sh", "-c", "echo kept > /root/kept; sync"])
    assert vm.stop(timeout=180)
    assert "powered off" in state.look(vm.context.home.vm(vm.name)).record.ended
    assert guest_cli("set", vm.name, FORWARDING).returncode == 0
    vm.start()
    vm.wait(timeout=1500)
    assert vm.exec(["cat", "/root/kept"]).text == "kept\n"
    with socket.create_connection(("127.0.0.1", vm.forwards[22]), timeout=60) as peer:
        peer.settimeout(60)
        assert peer.recv(4) == b"SSH-"


def owned_by(home, process):
    """Return the temporary machines of a process; those of other workers come and go too."""
    found = []
    for name in machine_names(home):
        with contextlib.suppress(WirtError):
            if read_record(home.vm(name).record).owner_pid == process.pid:
                found.append(name)
    return found


def test_a_one_shot_machine_gives_its_exit_code_and_goes(wirt_context, guest_cli):
    words = ["run", *SAME, "debian:12", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]
    with guest_cli.start(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.communicate(timeout=1500) == (b"out\n", b"err\n")
    assert process.returncode == 7
    assert owned_by(wirt_context.home, process) == []


def _one_shot(cli, home):
    """Start a one-shot machine whose command does not end; return it and its machine's name."""
    words = ["run", *SAME, "debian:12", "--", "sleep", "10000"]
    process = cli.start(*words, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 1500  # it waits for whoever makes the template
    while not (names := owned_by(home, process)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process, names[0]


def test_what_a_killed_one_shot_leaves_is_removed_by_the_next(wirt_context, guest_cli):
    home = wirt_context.home
    process, orphan = _one_shot(guest_cli, home)
    process.kill()
    process.wait()
    interrupted, _ = _one_shot(guest_cli, home)
    assert orphan not in machine_names(home)
    interrupted.send_signal(signal.SIGINT)
    assert interrupted.wait(120) == 130
    assert owned_by(home, interrupted) == []


def test_the_library_does_what_its_docstring_says(wirt_context):
    code = (
        "import wirt\n"
        f"context = wirt.Context(wirt.home_at({wirt_context.home.root!r}))\n"
        "with wirt.run('debian:12', memory='1G', context=context) as vm:\n"
        "    print(vm.exec(['uname', '-s']).text, vm.accelerator[0], vm.machine.memory)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=1500, check=True
    )
    assert done.stdout.split() == ["Linux", "tcg", str(1 << 30)] or "kvm" in done.stdout
