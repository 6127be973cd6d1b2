"""Disks of formats that QEMU cannot open: wirt serves them, and QEMU sees the right bytes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import msgspec
import pytest

from tests.image.formats.support import sample
from tests.vm.test_fork_faults import kill_at
from wirt.host.process_id import ProcessId
from wirt.image.base import AllowLocalFiles
from wirt.image.create import create_image
from wirt.image.open import open_image
from wirt.image.storage.nbd import NbdStorage
from wirt.store.locks import try_lock
from wirt.store.record import read_record
from wirt.vm import disk_serving
from wirt.vm.create import Wish, create
from wirt.vm.inspect import argv, inspect
from wirt.vm.monitor import connect
from wirt.vm.served import beyond_qemu
from wirt.vm.source import check_backing_free, resolve
from wirt.vm.start import start
from wirt.vm.stop import stop

pytestmark = [pytest.mark.needs_qemu, pytest.mark.needs_qemu_img]

MIB = 1 << 20
SMALL = {"memory": "64M", "video": {"model": "none"}, "displays": []}


def chain(place, name, *, base_format=""):
    """Make an image with a parent: 0x11 in the parent's second MiB, 0x22 in its own third."""
    base_format = base_format or name
    base, top = str(place / f"base.{base_format}"), str(place / f"top.{name}")
    create_image(base, base_format, 8 * MIB)
    with open_image(base, format=base_format, writable=True) as image:
        image.pwrite(MIB, b"\x11" * MIB)
    create_image(top, name, 8 * MIB, backing=Path(base).name, backing_format=base_format)
    with open_image(top, format=name, writable=True, gate=AllowLocalFiles()) as image:
        image.pwrite(2 * MIB, b"\x22" * MIB)
    os.chmod(place, 0o755)
    return top


@pytest.fixture
def place(context):
    """A directory that QEMU's own uid can reach."""
    path = Path(context.home.root) / "there"
    path.mkdir(mode=0o755)
    return path


def own_disk(context, path, name, **disk):
    settings = {**SMALL, "disks": [{"image": str(path), "format": name, **disk}]}
    create(context, "vm", None, Wish(settings=settings, disk_size=MIB))
    return context.home.vm("vm")


def seen(paths, offset, length):
    """Return bytes of the disk as QEMU sees them: it exports the node that its guest has."""
    where = paths.socket("test")
    with connect(paths, read_record(paths.record)) as qmp:
        server = {"addr": {"type": "unix", "data": {"path": where}}}
        qmp.execute("nbd-server-start", server)
        export = {"type": "nbd", "id": "test", "node-name": "disk0-format", "name": "d"}
        qmp.execute("block-export-add", export)
        try:
            with NbdStorage(f"nbd+unix:///d?socket={where}") as storage:
                return storage.pread(offset, length)
        finally:
            qmp.execute("nbd-server-stop")


def write(paths, command):
    """Let QEMU itself write to the disk; what it says about that goes to its log."""
    with connect(paths, read_record(paths.record)) as qmp:
        line = f'qemu-io -d /machine/peripheral/disk0/virtio-backend "write {command}"'
        qmp.execute("human-monitor-command", {"command-line": line}, reply=str)


def server_of(paths):
    run = read_record(paths.record).run
    return ProcessId(run.server_pid, run.server_start_ticks)


@pytest.mark.parametrize(
    ("name", "base_format"), [("vpc", ""), ("vhdx", ""), ("vdi", ""), ("cow", "raw")]
)
def test_qemu_reads_and_writes_through_the_server(context, place, name, base_format):
    top = chain(place, name, base_format=base_format)
    paths = own_disk(context, top, name)
    start(context, "vm")
    assert seen(paths, MIB, MIB) == bytes([0x11]) * MIB
    assert seen(paths, 2 * MIB, MIB) == bytes([0x22]) * MIB
    assert seen(paths, 3 * MIB, MIB) == bytes([0]) * MIB
    write(paths, "-P 0x33 5M 64k")
    (shown,) = inspect(context, "vm")["served"]
    assert shown["format"] == name
    assert shown["why"]
    assert any('"nbd"' in word for word in argv(context, "vm"))
    server = server_of(paths)
    assert server.alive()
    stop(context, "vm", force=True)
    assert not server.alive()
    with open_image(top, format=name, gate=AllowLocalFiles(), writable=True) as image:
        assert image.pread(5 * MIB, 65536) == b"\x33" * 65536
        assert image.pread(MIB, 512) == b"\x11" * 512
    start(context, "vm")
    assert seen(paths, 5 * MIB, 65536) == bytes([0x33]) * 65536


def test_an_overlay_on_a_served_image_keeps_the_image_as_it_is(context, place):
    top = chain(place, "vpc")
    before = Path(top).read_bytes()
    source = resolve(context, top, image_format="vpc")
    check_backing_free(source)
    create(context, "vm", source, Wish(settings=SMALL))
    paths = context.home.vm("vm")
    start(context, "vm")
    assert seen(paths, MIB, MIB) == bytes([0x11]) * MIB
    assert seen(paths, 2 * MIB, MIB) == bytes([0x22]) * MIB
    write(paths, "-P 0x44 1M 64k")
    (shown,) = inspect(context, "vm")["served"]
    assert shown["below"]
    assert shown["read_only"]
    stop(context, "vm", force=True)
    assert Path(top).read_bytes() == before
    start(context, "vm")
    assert seen(paths, MIB, 65536) == bytes([0x44]) * 65536
    assert seen(paths, MIB + 65536, 65536) == bytes([0x11]) * 65536


def test_the_server_dies_with_its_machine_whoever_is_killed(context, place):
    paths = own_disk(context, chain(place, "vpc"), "vpc")
    start(context, "vm")
    server = server_of(paths)
    run = read_record(paths.record).run
    ProcessId(run.pid, run.start_ticks).kill()
    assert server.wait(60)
    start(context, "vm")
    assert seen(paths, MIB, MIB) == bytes([0x11]) * MIB


def test_a_killed_server_is_started_again_and_qemu_goes_on(context, place):
    paths = own_disk(context, chain(place, "vpc"), "vpc")
    start(context, "vm")
    write(paths, "-f -P 0x55 6M 64k")
    first = server_of(paths)
    assert first.signal(signal.SIGKILL)
    assert first.wait(60)
    assert start(context, "vm") is False
    second = server_of(paths)
    assert second != first
    assert seen(paths, 6 * MIB, 65536) == b"\x55" * 65536


def test_an_image_that_is_in_use_stops_the_start_and_leaves_no_server(context, place):
    top = chain(place, "vpc")
    paths = own_disk(context, top, "vpc")
    with (
        open_image(top, format="vpc", writable=True, gate=AllowLocalFiles()),
        pytest.raises(Exception, match=r"did not start.*lock"),
    ):
        start(context, "vm")
    assert read_record(paths.record).phase == "stopped"
    start(context, "vm")


def test_a_server_that_nobody_has_written_down_is_waited_for(context, place, monkeypatch):
    """It ends by itself, but takes its time to see that whoever started it was killed."""
    paths = own_disk(context, chain(place, "vpc"), "vpc")
    assert kill_at(context, "disks-served", "start", "vm")[0] == -9
    start(context, "vm")
    server = server_of(paths)
    assert try_lock(paths.disks_lock) is None
    stop(context, "vm", force=True)
    assert not server.alive()
    others = [try_lock(paths.disks_lock)]

    def while_another_ends(path):
        lock = try_lock(path)
        if lock is None:
            os.close(others.pop())
        return lock

    monkeypatch.setattr(disk_serving, "try_lock", while_another_ends)
    start(context, "vm")
    assert others == []
    assert server_of(paths).alive()


def test_only_what_qemu_cannot_open_is_served(place):
    for name in ("qcow2", "vpc", "vhdx", "vdi", "vmdk"):
        path = str(place / f"plain.{name}")
        create_image(path, name, 8 * MIB)
        assert beyond_qemu(path, name)[0] == ""
    for name, base_format in (("vpc", ""), ("vhdx", ""), ("vdi", ""), ("cow", "raw")):
        assert beyond_qemu(chain(place, name, base_format=base_format), name)[0]


def test_show_tells_what_is_served(context, cli, place):
    own_disk(context, chain(place, "vpc"), "vpc", read_only=True)
    started = cli("start", "vm")
    assert started.returncode == 0, started.stderr
    shown = cli("show", "vm").stdout.decode()
    assert "served " in shown
    assert "read-only: QEMU ignores the parent" in shown
    (served,) = json.loads(cli("show", "--json", "vm").stdout)["served"]
    assert served["read_only"]


def test_a_disk_that_cannot_be_written_becomes_read_only(context, place):
    path = sample("simple-dmg.dmg", place)
    said = []
    context = msgspec.structs.replace(context, say=said.append)
    paths = own_disk(context, path, "dmg")
    start(context, "vm")
    with open_image(str(path), format="dmg") as image:
        assert seen(paths, 0, image.virtual_size) == image.pread(0, image.virtual_size)
    (shown,) = inspect(context, "vm")["served"]
    assert shown["read_only"]
    assert any("read-only: QEMU lacks most compressions of dmg" in words for words in said)
