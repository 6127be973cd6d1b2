"""CDs and floppies: of machines, and of a host.

A guest of QEMU has a CD drive that a Linux drives as any other one. So the guest is the host on
which wirt handles a real drive, and QEMU tells what became of tray and door.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path

import msgspec
import pytest

from tests.vm.conftest import scratch_home
from tests.vm.network.conftest import KERNEL_LINE, eventually
from tests.vm.test_fork_faults import kill_at
from wirt.errors import AmbiguousFormat, NotFound, QemuError, UsageError, WrongState
from wirt.image.create import create_image
from wirt.protocols.qmp.messages import BlockInfo, BlockNodeInfo
from wirt.spec.disk import Disk
from wirt.spec.hardware import Boot
from wirt.spec.machine import Machine
from wirt.store.record import Record, read_record
from wirt.vm import medium
from wirt.vm.create import Wish, create
from wirt.vm.description import load_spec, load_started
from wirt.vm.forking.fork import fork
from wirt.vm.medium import eject, insert
from wirt.vm.monitor import connect
from wirt.vm.start import for_our_kernel, start

pytestmark = pytest.mark.needs_qemu

FLOPPY = 1440 << 10
EMPTY = {"media": "cdrom", "bus": "sata", "format": "raw"}


def disc(path: Path, seed: int, size: int = 1 << 20) -> Path:
    """Write what a drive can hold, different for each seed."""
    path.write_bytes(random.Random(seed).randbytes(size))
    path.chmod(0o644)
    return path


def drives_of(context, name) -> dict[str, BlockInfo]:
    paths = context.home.vm(name)
    with connect(paths, read_record(paths.record)) as qmp:
        return {one.qdev: one for one in qmp.execute("query-block", reply=list[BlockInfo])}


def nodes_of(context, name) -> set[str]:
    paths = context.home.vm(name)
    with connect(paths, read_record(paths.record)) as qmp:
        found = qmp.execute("query-named-block-nodes", reply=list[BlockNodeInfo])
    return {one.node_name for one in found}


def machine(context, name, *disks, **settings):
    tree = {
        "memory": "64M", "displays": [], "nics": [], "channels": [], "balloon": False,
        "disks": list(disks), **settings,
    }  # fmt: skip
    create(context, name, None, Wish(settings=tree))
    return context.home.vm(name)


@pytest.fixture
def discs(disk_directory):
    """Two discs and a floppy, where QEMU's own uid finds them."""
    return [
        disc(disk_directory / "one.iso", 1),
        disc(disk_directory / "two.iso", 2),
        disc(disk_directory / "three.img", 3, FLOPPY),
    ]


def test_a_machine_that_is_down_gets_another_disc(context, discs):
    one, two, floppy = discs
    cd, fd = {**EMPTY, "id": "cd"}, {"bus": "floppy", "format": "raw", "id": "fd"}
    paths = machine(context, "still", {**cd, "image": str(one)}, fd)
    done = insert(context, "still", str(two))
    assert (done.drive, done.image, done.format, done.before) == ("cd", str(two), "raw", str(one))
    assert insert(context, "still", str(floppy), drive="fd").before == ""
    assert [disk.image for disk in load_spec(paths).disks] == [str(two), str(floppy)]
    assert eject(context, "still").before == str(two)
    assert eject(context, "still").before == ""
    assert [disk.image for disk in load_spec(paths).disks] == ["", str(floppy)]


def test_what_is_no_drive_is_said(context, discs):
    machine(context, "none", {"image": str(discs[0]), "format": "raw"})
    with pytest.raises(NotFound, match="no CD or floppy drive"):
        eject(context, "none")
    machine(context, "two", {**EMPTY, "id": "a"}, {**EMPTY, "id": "b"})
    with pytest.raises(UsageError, match="several drives"):
        eject(context, "two")
    with pytest.raises(NotFound, match="'c'") as raised:
        insert(context, "two", str(discs[0]), drive="c")
    assert "a, b" in raised.value.hint


def test_the_verbs_tell_what_they_did(context, cli, discs):
    machine(context, "told", dict(EMPTY))
    done = cli("insert", "told", str(discs[0]))
    assert done.stdout.decode() == f"told: disk0 holds {discs[0]} (raw)\n"
    done = cli("eject", "told", "--json")
    assert json.loads(done.stdout)["before"] == str(discs[0])
    assert cli("eject", "told").stdout == b"told: disk0: was empty\n"
    missing = cli("insert", "told", "/nowhere.iso")
    assert (missing.returncode, missing.stdout) == (20, b"")
    assert b"/nowhere.iso" in missing.stderr


def test_the_kernel_of_an_image_of_ours_looks_at_drives():
    plain = Machine(name="a", boot=Boot(cmdline="root=/dev/vda"), disks=(Disk(image="a"),))
    drive = Disk(media="cdrom", bus="sata")
    with_drive = msgspec.structs.replace(plain, disks=(*plain.disks, drive))
    for machine, words in ((plain, ""), (with_drive, "block.events_dfl_poll_msecs=2000 ")):
        ours = for_our_kernel(machine, Record(image_id="one"), "kvm")
        assert ours.boot.cmdline == f"{words}root=/dev/vda"
    assert for_our_kernel(with_drive, Record(), "kvm") == with_drive


def shown(context, name, drive="cd") -> str:
    """Return the file that QEMU shows in a drive, "" for none or an open tray."""
    found = drives_of(context, name)[drive]
    return "" if found.inserted is None else found.inserted.file


@pytest.mark.parametrize("point", ["medium-described", "medium-removed", "medium-inserted"])
def test_killed_in_the_middle_a_drive_is_at_worst_taken_for_empty(context, discs, point):
    one, two, _ = (str(disc) for disc in discs)
    paths = machine(context, "dies", {**EMPTY, "id": "cd", "image": one})
    start(context, "dies")
    code, _ = kill_at(context, point, "insert", "dies", two)
    assert code == -9
    assert load_spec(paths).disks[0].image == two
    known = load_started(paths).disks[0].image
    assert known in {"", shown(context, "dies")}
    insert(context, "dies", two)
    assert load_started(paths).disks[0].image == shown(context, "dies") == two
    assert len(nodes_of(context, "dies")) == 2


def test_a_fork_has_the_disc_of_now(context, discs):
    machine(context, "old", {**EMPTY, "id": "cd", "image": str(discs[0])})
    start(context, "old")
    insert(context, "old", str(discs[1]))
    fork(context, "old", ["young"])
    assert shown(context, "young") == shown(context, "old") == str(discs[1])
    eject(context, "young")
    assert (shown(context, "young"), shown(context, "old")) == ("", str(discs[1]))


@pytest.mark.needs_root
def test_a_file_that_only_its_owner_can_read_comes_as_a_descriptor(context, discs, tmp_path):
    hidden = disc(tmp_path / "hidden.iso", 4)
    hidden.chmod(0o600)
    machine(context, "kept", {**EMPTY, "id": "cd"})
    start(context, "kept")
    for _ in range(2):
        insert(context, "kept", str(hidden))
        assert shown(context, "kept").startswith("/dev/fdset/")
    insert(context, "kept", str(discs[0]))
    assert len(nodes_of(context, "kept")) == 2


def test_what_qemu_cannot_do_leaves_all_as_it_was(context, discs, tmp_path):
    cd = {**EMPTY, "id": "cd", "image": str(discs[0]), "throttle": {"bytes_total": 1 << 20}}
    paths = machine(context, "same", cd)
    start(context, "same")
    nodes = nodes_of(context, "same")
    foreign = tmp_path / "foreign.cow"
    create_image(str(foreign), "cow", 1 << 20)
    with pytest.raises(AmbiguousFormat, match="looks like a cow image") as raised:
        insert(context, "same", str(foreign))
    assert "--format cow" in raised.value.hint
    for image, words in ((foreign, "wirt must serve"), (discs[1], "QEMU cannot use")):
        with pytest.raises((WrongState, QemuError), match=words):
            insert(context, "same", str(image), image_format="cow" if image == foreign else "vdi")
        assert load_spec(paths).disks[0].image == str(discs[0])
        assert str(discs[0]) in shown(context, "same")
        assert nodes_of(context, "same") == nodes
    insert(context, "same", str(discs[1]))
    assert len(nodes_of(context, "same")) == len(nodes)
    eject(context, "same")
    assert nodes_of(context, "same") == set()


@pytest.fixture(scope="module")
def host(guest_image, tiny_initrd, guests, disk_directory):
    """A running guest with a CD drive and a floppy drive, and wirt in it."""
    tiny = guests["tiny"]
    modules = tiny.modules_of(guest_image, ("sr_mod", "floppy"))
    python = disk_directory / "python.raw"
    guests["hostpython"].make_disk(python, modules)
    python.chmod(0o644)
    with scratch_home() as context:
        machine(
            context, "host",
            {"image": str(python), "format": "raw", "read_only": True},
            {**EMPTY, "id": "cd"},
            {"bus": "floppy", "format": "raw", "id": "fd"},
            memory="256M",
            boot={"kernel": os.fspath(guest_image.kernel), "initrd": os.fspath(tiny_initrd),
                  "cmdline": KERNEL_LINE},
        )  # fmt: skip
        start(context, "host")
        shell = tiny.Shell(tiny.console(context.home.vm("host")))
        shell("dmesg -n 1")
        shell("for m in virtio_pci virtio_blk ext4 ahci; do modprobe $m; done; mkdir -p /py")
        shell("until [ -e /dev/vda ]; do sleep 0.1; done; mount -o ro /dev/vda /py")
        for module in modules:  # the initrd has some of them
            shell(f"insmod /py/{module}", check=False)
        shell("until [ -e /dev/sr0 ] && [ -e /dev/fd0 ]; do sleep 0.1; done")
        try:
            yield context, shell
        finally:
            shell.close()


def read(shell, drive: str) -> str:
    """Return the digest of a disc; the kernel may fail the first read of one just put in."""
    return shell(f"until md5sum < {drive} 2>/dev/null; do sleep 0.2; done").split()[0]


def digest(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def test_a_running_machine_gets_other_discs(host, discs, monkeypatch):
    context, shell = host
    one, two, floppy = discs
    paths = context.home.vm("host")
    first = nodes_of(context, "host")
    insert(context, "host", str(one), drive="cd")
    assert read(shell, "/dev/sr0") == digest(one)
    shell("exec 9</dev/sr0; sleep 1000 & echo $! > /tmp/holder")
    assert drives_of(context, "host")["cd"].locked
    monkeypatch.setattr(medium, "_LET_GO_SECONDS", 0.2)  # this guest does not look
    with pytest.raises(WrongState, match="does not let go") as raised:
        insert(context, "host", str(two), drive="cd")
    assert "--force" in raised.value.hint
    assert load_spec(paths).disks[1].image == load_started(paths).disks[1].image == str(one)
    assert insert(context, "host", str(two), drive="cd", force=True).before == str(one)
    shell("kill $(cat /tmp/holder)")
    assert read(shell, "/dev/sr0") == digest(two)
    insert(context, "host", str(floppy), drive="fd")
    assert read(shell, "/dev/fd0") == digest(floppy)
    assert [disk.image for disk in load_started(paths).disks[1:]] == [str(two), str(floppy)]
    for drive in ("cd", "fd"):
        eject(context, "host", drive=drive)
    assert shell("md5sum < /dev/sr0", check=False).count("No medium") == 1
    assert nodes_of(context, "host") == first


class GuestsWirt:
    """The program in the guest: how its drive, the real one of that system, is used."""

    def __init__(self, shell) -> None:
        self._shell = shell

    def __call__(self, line: str) -> tuple[int, str]:
        text = self._shell(f"/py/run -m wirt {line}; echo code=$?")
        text, _, code = text.rpartition("code=")
        return int(code), text


def test_the_drive_of_a_host_tells_opens_closes_and_keeps_its_disc(host, discs):
    context, shell = host
    wirt = GuestsWirt(shell)

    def drive():
        return drives_of(context, "host")["cd"]

    def told():
        code, text = wirt("img info --json /dev/sr0")
        assert code == 0, text
        about = json.loads(text)[0]
        inside = about["specific"]
        return about["format"], about["virtual_size"], inside["tray"], inside["disc"]

    assert told() == ("host_cdrom", 0, "closed", "none")
    code, text = wirt("img convert /dev/sr0 /tmp/copy.raw")
    assert code == 29
    assert "there is no disc in the drive" in text
    assert "wirt img eject /dev/sr0" in text

    insert(context, "host", str(discs[0]), drive="cd")
    assert told() == ("host_cdrom", 1 << 20, "closed", "data")
    assert wirt("img convert /dev/sr0 /tmp/copy.raw")[0] == 0
    assert shell("md5sum /tmp/copy.raw").split()[0] == digest(discs[0])

    assert wirt("img eject /dev/sr0") == (0, "/dev/sr0: tray open\n")
    assert drive().tray_open
    assert told() == ("host_cdrom", 0, "open", "none")
    code, text = wirt("img map /dev/sr0")
    assert code == 29
    assert "the tray of the drive is open" in text
    assert "--close" in text
    assert drive().tray_open, "opening an image closes no tray"
    assert wirt("img eject --close /dev/sr0") == (0, "/dev/sr0: closed, disc: data\n")
    assert not drive().tray_open

    # While somebody reads, the disc stays; killed, nobody holds it.
    serve = "/py/run -m wirt img serve --unix /tmp/served -r -t /dev/sr0"
    shell(f"{serve} >/dev/null 2>&1 & echo $! >/tmp/server")
    shell("until [ -S /tmp/served ]; do sleep 0.1; done")
    assert drive().locked
    code, text = wirt("img eject /dev/sr0")
    assert code == 25
    assert not drive().tray_open
    shell("kill -9 $(cat /tmp/server)")
    eventually(lambda: not drive().locked)

    # As a QEMU that was killed leaves it: the door is locked by nobody.
    lock = "import fcntl, os; fcntl.ioctl(os.open('/dev/sr0', os.O_NONBLOCK), 0x5329, 1)"
    shell(f'/py/run -c "{lock}"')
    assert drive().locked
    assert wirt("img eject /dev/sr0") == (0, "/dev/sr0: tray open\n")
    eject(context, "host", drive="cd")


def test_the_floppy_drive_of_a_host(host, discs):
    context, shell = host
    wirt = GuestsWirt(shell)
    code, text = wirt("img map --format host_floppy /dev/fd0")
    assert (code, "no medium in the drive" in text) == (29, True)
    assert "medium: none" in wirt("img info /dev/fd0")[1]
    insert(context, "host", str(discs[2]), drive="fd")
    code, text = wirt("img convert --format host_floppy /dev/fd0 /tmp/floppy.raw")
    assert code == 0, text
    assert shell("md5sum /tmp/floppy.raw").split()[0] == digest(discs[2])
    code, text = wirt("img eject /dev/fd0")
    assert (code, "press its button" in text) == (22, True)
    eject(context, "host", drive="fd")
