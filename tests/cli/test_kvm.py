"""The program ``kvm`` as its users start it, and what becomes of a line in wirt."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.qemu.legacy.lines import started
from wirt.host.process import find_program

SECONDS = 600.0
TALK = [
    *("-m", "512", "-net", "nic,model=rtl8139", "-net", "user", "-vga", "std", "-no-kvm-pit"),
    *("-usbdevice", "tablet", "-usb", "-boot", "c", "-localtime", "-hda", "XP.img"),
    *("-name", "XP_Test1"),
]
MIRROR = [
    *("-m", "512", "-smp", "2", "-localtime", "-net", "nic,model=virtio", "-net", "user"),
    *("-vga", "cirrus", "-daemonize", "-ctrl-grab", "-boot", "c"),
    *("-monitor", "unix:monitor.sock,server,nowait"),
    *("-drive", "file=system.img,if=virtio,boot=on", "-drive", "file=mirror.img,if=virtio"),
    *("-name", "Debs mirror system"),
]

pytestmark = pytest.mark.needs_qemu


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory to be in, with a home of wirt's beside it, and no screen."""
    home = Path(tempfile.mkdtemp(prefix="wirt-kvm"))
    home.chmod(0o711)  # QEMU's own uid passes through
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.setenv("WIRT_HOME", str(home))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QEMU_AUDIO_DRV"):
        monkeypatch.delenv(name, raising=False)
    yield here
    shutil.rmtree(home)


def kvm(*words, place, **options):
    return subprocess.run(
        [sys.executable, "-m", "wirt.cli.kvm.main", *words],
        cwd=place, capture_output=True, text=True, timeout=SECONDS, check=False, **options,
    )  # fmt: skip


def wirt(*words, place):
    return subprocess.run(
        [sys.executable, "-m", "wirt", *words],
        cwd=place, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip


@contextlib.contextmanager
def running(*words, place):
    process = subprocess.Popen(
        [sys.executable, "-m", "wirt.cli.kvm.main", *words],
        cwd=place, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def connect(path: Path) -> socket.socket:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(SECONDS)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
            time.sleep(0.05)
        else:
            return connection
    raise AssertionError(f"nobody listens at {path}")


def read_until(connection: socket.socket, wanted: str) -> str:
    text = ""
    deadline = time.monotonic() + SECONDS
    while wanted not in text and time.monotonic() < deadline:
        data = connection.recv(65536)
        assert data, f"the end, after: {text[-500:]}"
        text += data.decode(errors="replace")
    assert wanted in text, text[-500:]
    return text


def ask(connection: socket.socket, command: str) -> str:
    connection.sendall(f"{command}\n".encode())
    return read_until(connection, "(qemu) ").split("\n", 1)[-1]


def in_guest(place: Path, script: str) -> str:
    """Type into the shell on the guest's serial port until it answers.

    What is typed before the shell is there comes to it in part only.
    """
    typed = f"\necho begin-$((6*7)); {script}; echo done-$((6*7))\n".encode()
    with connect(place / "serial.sock") as serial:
        serial.settimeout(3.0)
        deadline = time.monotonic() + SECONDS
        text = ""
        while time.monotonic() < deadline:
            serial.sendall(typed)
            with contextlib.suppress(TimeoutError):
                while not (answer := re.search(r"begin-42(.*?)done-42", text, re.DOTALL)):
                    text += serial.recv(65536).decode(errors="replace")
                return answer[1]
    raise AssertionError(f"the guest did not answer: {text[-1000:]}")


def test_the_first_line_of_the_talk_boots(place, shell_disk):
    (place / "XP.img").write_bytes(shell_disk.read_bytes())
    watch = ["-serial", "unix:serial.sock,server,nowait"]
    with running(*TALK, *watch, place=place) as process:
        assert "0x8139" in in_guest(place, "cat /sys/bus/pci/devices/*/device")
        _greet(_vnc_port(process))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0  # QEMU's own answer to SIGTERM


def test_lines_that_start_at_one_moment_have_displays_of_their_own(place):
    line = ["-S", "-m", "32", "-net", "none"]
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(running(*line, place=place)) for _ in range(5)]
        ports = [_vnc_port(process) for process in processes]
        for port in ports:
            _greet(port)
        assert len(set(ports)) == len(processes)
        assert not any(process.poll() for process in processes)


def _vnc_port(process) -> int:
    """Return the port that the line says its screen is served at."""
    said = ""
    while not (port := re.search(r"served by VNC at 127\.0\.0\.1:(\d+)\n", said)):
        data = os.read(process.stdout.fileno(), 65536).decode()
        assert data, said
        said += data
    return int(port[1])


def _greet(port: int) -> None:
    """Talk to the server there, as soon as there is one."""
    deadline = time.monotonic() + SECONDS
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as vnc:
                assert vnc.recv(12).startswith(b"RFB 003")
            return
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_mirror_of_the_talk_boots_and_obeys_its_monitor(place, shell_disk):
    (place / "system.img").write_bytes(shell_disk.read_bytes())
    with (place / "mirror.img").open("wb") as file:
        file.truncate(64 << 20)
    watch = ["-serial", "unix:serial.sock,server,nowait", "-pidfile", "vm.pid"]
    done = kvm(*MIRROR, *watch, place=place)
    assert done.returncode == 0, done.stderr
    pid = int((place / "vm.pid").read_text())
    try:
        with connect(place / "monitor.sock") as monitor:
            read_until(monitor, "(qemu) ")
            assert "running" in ask(monitor, "info status")
            assert "mirror.img" in ask(monitor, "info block")
            devices = in_guest(place, "cat /sys/bus/pci/devices/*/device")
            assert devices.count("0x1001") == 2  # virtio disks
            assert devices.count("0x1000") == 1  # a virtio card
            ask(monitor, "stop")
            assert "paused" in ask(monitor, "info status")
            monitor.sendall(b"quit\n")
            while monitor.recv(4096):
                pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


SCRIBBLER = bytes.fromhex(
    "31c08ed88ec0"  # ax, ds, es = 0
    "bb007cb80103b90200ba8000cd13"  # int 13h: write this sector to sector 2 of the first disk
    "baf803b057ee"  # W to the first serial port
    "f4ebfd"  # halt for ever
)
"""A guest of 512 bytes that writes to its disk and says so."""


def test_snapshot_keeps_the_image_and_leaves_nothing(place, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    image = place / "disk.img"
    image.write_bytes(SCRIBBLER.ljust(510, b"\0") + b"\x55\xaa" + bytes(4 << 20))
    before = image.read_bytes()
    line = ["-m", "64", "-vga", "none", "-nographic", "-hda", "disk.img", "-monitor", "none"]
    line += ["-net", "none", "-serial", "file:serial.log"]
    for words, kept in ((["-snapshot"], True), ([], False)):
        with running(*line, *words, place=place):
            deadline = time.monotonic() + SECONDS
            while b"W" not in _content(place / "serial.log"):
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert sorted(path.name for path in place.iterdir()) == ["disk.img", "serial.log"]
        assert (image.read_bytes() == before) is kept
        (place / "serial.log").unlink()
    assert not list(tmp_path.glob("tmp*"))


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-hda", "nothing.img"], "-hda nothing.img: the image nothing.img is not on this host"),
        (["-net", "nic,model=smc91c111"], "not a card for a PC: it belongs to boards of ARM"),
        (["-hdz", "a"], "no QEMU ever had this option"),
        (["-m"], "a value must follow"),
        (["-serial", "stdio", "-monitor", "stdio"], "two ports want the terminal"),
        (["-net", "vde,sock=cmd://touch x"], "is not the directory of a switch"),
        (["-device", "no-such-thing"], "this QEMU has no device no-such-thing"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_one_clear_sentence(words, said, place):
    done = kvm(*words, place=place)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (place / "x").exists()


def test_qemu_answers_what_only_it_knows(place):
    assert "QEMU emulator version" in kvm("-version", place=place).stdout
    assert "rtl8139" in kvm("-net", "nic,model=?", place=place).stdout
    assert "pc-i440fx" in kvm("-M", "?", place=place).stdout
    assert "--explain" in kvm("--help", place=place).stdout


def test_kvm_linked_by_the_name_of_qemu_does_not_find_itself(place):
    program = place / "qemu-system-x86_64"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nfrom wirt.cli.kvm.main import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)
    path = f"{place}:{os.environ['PATH']}"
    done = subprocess.run(
        [program, "-version"], env={**os.environ, "PATH": path}, capture_output=True, text=True,
        timeout=SECONDS, check=False,
    )  # fmt: skip
    assert "QEMU emulator version" in done.stdout, done.stderr
    assert Path(find_program("qemu-system-x86_64")).parent != place


def test_explain_says_what_was_and_what_is(place):
    done = wirt("explain", "--", "kvm", *TALK, place=place)
    assert done.returncode == 0
    assert re.search(r"-no-kvm-pit +dropped +.*gone in 2\.12", done.stdout)
    assert "today: -rtc base=localtime" in done.stdout
    assert '-device \'{"driver":"rtl8139"' in done.stdout
    assert done.stdout == kvm("--explain", *TALK, place=place).stdout


def test_explain_for_programs_has_the_published_form(place):
    tree = json.loads(wirt("explain", "--json", "--", "kvm", *TALK, place=place).stdout)
    assert set(tree) == {"machine", "argv", "notes"}
    assert tree["machine"]["memory"] == 512 << 20
    assert tree["machine"]["rtc"] == {"base": "localtime"}
    keys = {"option", "value", "status", "removed_in", "today", "why"}
    assert all(set(note) == keys for note in tree["notes"])
    dropped = next(note for note in tree["notes"] if note["option"] == "-no-kvm-pit")
    assert (dropped["status"], dropped["removed_in"]) == ("dropped", "2.12")
    refused = wirt("explain", "--json", "--", "kvm", "-net", "nic,model=lance", place=place)
    assert refused.returncode == 1
    assert json.loads(refused.stdout)["machine"] is None
    assert json.loads(refused.stdout)["argv"] == []


def blank(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(4 << 20)


def test_an_adopted_line_is_a_machine_with_its_disk_in_place(place):
    blank(place / "XP.img")
    done = wirt("adopt", "--", "kvm", *TALK, place=place)
    assert done.returncode == 0, done.stderr
    text = wirt("show", "--toml", "XP_Test1", place=place).stdout
    assert f'image = "{place}/XP.img"' in text
    assert 'mac = "52:54:00:12:34:56"' in text
    started_here = wirt("start", "XP_Test1", place=place)
    try:
        assert started_here.returncode == 0, started_here.stderr
        assert "running" in wirt("ls", place=place).stdout
    finally:
        wirt("stop", "--force", "XP_Test1", place=place)
    again = wirt("adopt", "--", "kvm", *TALK, place=place)
    assert "there is a machine 'XP_Test1' already" in again.stderr


def test_a_running_qemu_is_adopted_with_what_its_monitor_tells(place):
    blank(place / "old.img")
    line = ["qemu-system-x86_64", "-display", "none", "-m", "64", "-S", "-hda", "old.img"]
    line += ["-uuid", "8b14d3a1-0907-e862-4043-498ff86d9ca2", "-net", "nic", "-net", "user"]
    line += ["-qmp", "unix:q.sock,server=on,wait=off"]
    process = subprocess.Popen(line, cwd=place, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        connect(place / "q.sock").close()
        done = wirt("adopt", "--json", "--pid", str(process.pid), "--name", "old", place=place)
        assert done.returncode == 0, done.stderr
        remarks = json.loads(done.stdout)["remarks"]
        assert any("runs on (prelaunch)" in remark for remark in remarks)
        text = wirt("show", "--toml", "old", place=place).stdout
        assert f'image = "{place}/old.img"' in text
        assert 'uuid = "8b14d3a1-0907-e862-4043-498ff86d9ca2"' in text
    finally:
        process.kill()
        process.wait()
    assert "no QEMU" in wirt("adopt", "--pid", str(os.getpid()), place=place).stderr


def test_an_exported_machine_starts_without_wirt(place, tmp_path):
    blank(place / "disk.img")
    wirt("adopt", "--name", "web", "--", "kvm", "-m", "64", "-hda", "disk.img", place=place)
    line = json.loads(wirt("export", "web", "--json", place=place).stdout)
    assert line[0] == "kvm"
    with started([find_program("qemu-system-x86_64"), *line[1:]], tmp_path) as qmp:
        assert qmp.execute("query-status", reply=dict)["status"] == "prelaunch"
    script = wirt("export", "web", "--as", "script", place=place).stdout
    assert script.startswith("#!/bin/sh\n")
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)
    assert str(place / "disk.img") in script
