"""QEMU's lock protocol on every file of the chain, in both directions, against real QEMUs."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.image.storage.peers import wait_until
from wirt.errors import ImageInUse
from wirt.image.base import AllowLocalFiles
from wirt.image.commit import commit
from wirt.image.create import create_image
from wirt.image.locks import is_written
from wirt.image.open import open_image
from wirt.image.rebase import flatten, rebase

pytestmark = [pytest.mark.needs_qemu, pytest.mark.needs_qemu_img]
MIB = 1 << 20


@pytest.fixture
def chain(tmp_path, monkeypatch):
    """top.qcow2 → middle.qcow2 → base.raw; data.qcow2 keeps its data in data.raw."""
    monkeypatch.chdir(tmp_path)
    create_image("base.raw", "raw", 4 * MIB)
    create_image("middle.qcow2", "qcow2", 4 * MIB, backing="base.raw", backing_format="raw")
    create_image("top.qcow2", "qcow2", 4 * MIB, backing="middle.qcow2", backing_format="qcow2")
    create_image("data.qcow2", "qcow2", 4 * MIB, options={"data_file": "data.raw"})
    return tmp_path


@pytest.fixture
def running(chain):
    """Start a QEMU with a disk and return when it has the disk open."""
    started = []

    def start(image, *, read_only=False):
        described = {
            "driver": image.rpartition(".")[2],
            "node-name": "disk",
            "read-only": read_only,
            "file": {"driver": "file", "filename": image},
        }
        process = subprocess.Popen(
            [
                "qemu-system-x86_64", "-nodefaults", "-display", "none", "-S",
                "-machine", "q35,accel=tcg", "-m", "32", "-qmp", "stdio",
                "-blockdev", json.dumps(described),
                "-device", "virtio-blk-pci,drive=disk" + (",share-rw=off" if not read_only else ""),
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        # Its greeting comes before the disks; an answer comes after them.
        process.stdin.write(b'{"execute": "qmp_capabilities"}\n')
        process.stdin.flush()
        assert b"QMP" in process.stdout.readline(), process.stderr.read()
        assert b"return" in process.stdout.readline(), process.stderr.read()
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()


def opens(path, **options):
    try:
        with open_image(path, gate=AllowLocalFiles(), **options):
            return True
    except ImageInUse:
        return False


def qemu_opens(path, *, writable, name="qcow2"):
    words = ["qemu-io", "-f", name, "-c", "read 0 512"]
    done = subprocess.run(
        [*words, *([] if writable else ["-r"]), path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 or "lock" in done.stderr, done.stderr
    return done.returncode == 0


def test_a_running_machines_files_are_not_written_and_read_only_when_forced(running):
    running("top.qcow2")
    assert not opens("top.qcow2")
    assert not opens("top.qcow2", writable=True)
    assert not opens("top.qcow2", writable=True, force_share=True)
    assert opens("top.qcow2", force_share=True)
    for below in ("middle.qcow2", "base.raw"):
        assert opens(below)
        assert not opens(below, writable=True)
    for change in (
        lambda: commit("top.qcow2"),
        lambda: commit("middle.qcow2"),
        lambda: rebase("middle.qcow2", "base.raw", backing_format="raw"),
        lambda: flatten("top.qcow2"),
        lambda: create_image("base.raw", "raw", MIB),
        lambda: create_image("top.qcow2", "raw", MIB),
    ):
        with pytest.raises(ImageInUse) as caught:
            change()
        assert "Is another process using the image" in caught.value.hint
    assert os.stat("base.raw").st_size == 4 * MIB


def test_a_machines_data_file_is_held_like_its_image(running):
    running("data.qcow2")
    assert not opens("data.raw", format="raw", writable=True)
    assert not opens("data.raw", format="raw")
    assert opens("data.raw", format="raw", force_share=True)
    assert not opens("data.qcow2", writable=True)


def test_a_machine_that_only_reads_shares_with_readers(running):
    running("middle.qcow2", read_only=True)
    assert opens("middle.qcow2")
    assert not opens("middle.qcow2", writable=True)
    assert not opens("base.raw", writable=True)


def test_what_we_write_no_qemu_opens(chain):
    with open_image("top.qcow2", writable=True, gate=AllowLocalFiles()):
        assert not qemu_opens("top.qcow2", writable=True)
        assert not qemu_opens("top.qcow2", writable=False)
        assert not qemu_opens("middle.qcow2", writable=True)
        assert not qemu_opens("base.raw", writable=True, name="raw")
        assert qemu_opens("middle.qcow2", writable=False)
    assert qemu_opens("top.qcow2", writable=True)
    with open_image("data.qcow2", writable=True, gate=AllowLocalFiles()):
        assert not qemu_opens("data.raw", writable=True, name="raw")
        assert not qemu_opens("data.qcow2", writable=False)


def test_what_we_read_qemu_reads_and_does_not_write(chain):
    with open_image("top.qcow2", gate=AllowLocalFiles()):
        for name in ("top.qcow2", "middle.qcow2"):
            assert qemu_opens(name, writable=False)
            assert not qemu_opens(name, writable=True)
        assert not qemu_opens("base.raw", writable=True, name="raw")
    with open_image("top.qcow2", gate=AllowLocalFiles(), force_share=True):
        assert qemu_opens("top.qcow2", writable=True)


def test_our_target_is_nobody_elses_while_it_is_written(chain):
    """A machine cannot start on a file that is about to be replaced."""
    code = (
        "import sys, time\n"
        "from wirt.image.replacement import replacing\n"
        "with replacing('middle.qcow2'):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout.readline() == b"held\n"
        assert not qemu_opens("middle.qcow2", writable=True)
        assert not qemu_opens("middle.qcow2", writable=False)
        assert not qemu_opens("top.qcow2", writable=False)
    finally:
        other.kill()
        other.wait()
        other.stdin.close()
        other.stdout.close()
    assert qemu_opens("middle.qcow2", writable=True)


def test_locks_die_with_a_killed_holder_and_belong_to_no_other_descriptor(chain):
    code = (
        "import os, time\n"
        "from wirt.image.open import open_image\n"
        "image = open_image('base.raw', format='raw', writable=True)\n"
        "os.close(os.open('base.raw', os.O_RDONLY))\n"  # would drop a POSIX lock
        "print('held', flush=True); time.sleep(600)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with open("base.raw", "rb") as file:
            assert is_written(file.fileno())
        assert not opens("base.raw", format="raw")
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    wait_until(lambda: opens("base.raw", format="raw", writable=True))


@pytest.mark.needs_tool("qemu-nbd")
def test_an_image_that_qemu_nbd_serves_is_in_use(chain):
    server = subprocess.Popen(
        ["qemu-nbd", "-t", "-k", str(chain / "socket"), "-f", "qcow2", "top.qcow2"]
    )
    try:
        wait_until(lambda: server.poll() is not None or _greets(chain / "socket"))
        assert server.poll() is None
        assert not opens("top.qcow2")
        assert not opens("middle.qcow2", writable=True)
        assert opens("top.qcow2", force_share=True)
    finally:
        server.kill()
        server.wait()


def _greets(path):
    """True when it serves: it listens before it opens the image, and that before its backing."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(120)
        return client.connect_ex(str(path)) == 0 and client.recv(8) == b"NBDMAGIC"
