"""The life of machines whose guest does not matter: QEMU is real, the disk is empty."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import msgspec
import pytest

from wirt.errors import (
    AlreadyExists,
    Busy,
    HostError,
    NoSpace,
    NotFound,
    QemuError,
    SpecError,
    UsageError,
)
from wirt.host.holders import processes_with
from wirt.host.process_id import ProcessId
from wirt.image.create import create_image
from wirt.store.locks import run_lock_is_held
from wirt.store.machines import machine_names
from wirt.store.record import read_record, write_record
from wirt.vm import state
from wirt.vm.context import Context
from wirt.vm.create import Wish, create
from wirt.vm.description import load_spec
from wirt.vm.edit import set_values
from wirt.vm.listing import list_machines
from wirt.vm.remove import remove, rename
from wirt.vm.source import DiskFile
from wirt.vm.start import start
from wirt.vm.stop import pause, resume, stop

pytestmark = pytest.mark.needs_qemu

SMALL = {"memory": "64M", "video": {"model": "none"}, "displays": []}


def make(context, name, **settings):
    return create(context, name, None, Wish(settings={**SMALL, **settings}, disk_size=1 << 20))


def test_a_machine_starts_runs_pauses_and_stops(context):
    make(context, "one")
    assert start(context, "one") is True
    assert start(context, "one") is False
    paths = context.home.vm("one")
    assert state.look(paths).status == "running"
    pause(context, "one")
    assert state.look(paths).status == "paused"
    resume(context, "one")
    assert state.look(paths).status == "running"
    process = state.process_of(read_record(paths.record))
    assert stop(context, "one", force=True) is True
    assert stop(context, "one") is False
    assert not process.alive()
    assert state.look(paths).status == "stopped"
    assert not os.path.exists(paths.runtime)


def test_the_process_is_confined(context):
    from wirt.host.confine import read_confinement

    make(context, "one")
    start(context, "one")
    record = read_record(context.home.vm("one").record)
    facts = read_confinement(record.run.pid)
    assert facts.seccomp == "filter"
    assert facts.no_new_privileges
    assert int(facts.capabilities, 16) == 0
    if os.geteuid() == 0:
        assert facts.uid == facts.gid == record.uid >= 65536
        assert facts.groups == ()


def test_what_qemu_may_write_is_its_own_and_the_description_is_not(context):
    make(context, "one")
    start(context, "one")
    paths = context.home.vm("one")
    record = read_record(paths.record)
    assert os.stat(paths.record).st_uid == os.stat(paths.spec).st_uid == os.geteuid()
    assert os.stat(paths.disks).st_uid == (record.uid or os.geteuid())
    assert os.stat(paths.runtime).st_mode & 0o777 == 0o700


def test_names_that_are_no_names_are_refused(context):
    for name in ("../x", "x" * 300, "a\nb", "", "-x", ".x", "ü", "a b", "x/y"):
        with pytest.raises(UsageError):
            make(context, name)
    assert machine_names(context.home) == []


def test_a_name_is_taken_once(context):
    make(context, "one")
    with pytest.raises(AlreadyExists):
        make(context, "one")


def test_nothing_stays_of_a_machine_that_could_not_be_made(context):
    with pytest.raises(SpecError):
        make(context, "one", memory="1X")
    assert os.listdir(context.home.vms) == []


def test_an_unknown_machine_is_named_with_its_neighbour(context):
    make(context, "database")
    with pytest.raises(NotFound) as caught:
        start(context, "databse")
    assert "database" in caught.value.hint


def test_memory_beyond_the_host_is_refused_before_qemu(context):
    make(context, "big", memory="900T")
    with pytest.raises(HostError, match="memory"):
        start(context, "big")


def test_a_missing_image_is_named(context):
    paths = make(context, "one")
    os.unlink(os.path.join(paths.disks, "disk0.qcow2"))
    with pytest.raises(NotFound, match=r"disk0\.qcow2"):
        start(context, "one")


def listening():
    """Return a socket at a port that nobody is given who asks for any: it is free again later."""
    with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
        first = int(file.read().split()[0])
    for port in random.sample(range(first // 2, first), 100):
        taken = socket.socket()
        try:
            taken.bind(("127.0.0.1", port))
        except OSError:
            taken.close()
            continue
        taken.listen()
        return taken
    raise AssertionError("all ports are taken")


def test_a_taken_port_is_named_and_nothing_stays(context):
    with listening() as taken:
        port = taken.getsockname()[1]
        forward = {"host_port": port, "guest_port": 80}
        make(context, "one", nics=[{"backend": {"type": "user", "forwards": [forward]}}])
        with pytest.raises(Busy, match=str(port)):
            start(context, "one")
    assert not run_lock_is_held(context.home.vm("one").run_lock)
    assert start(context, "one")


def test_port_0_becomes_a_free_port_that_is_recorded(context):
    forward = {"host_port": 0, "guest_port": 22}
    make(context, "one", nics=[{"backend": {"type": "user", "forwards": [forward]}}])
    start(context, "one")
    ((protocol, host, guest),) = list_machines(context)[0].forwards
    assert (protocol, guest) == ("tcp", 22)
    with socket.create_connection(("127.0.0.1", host), timeout=60):
        pass


def test_an_image_in_use_by_another_machine_is_refused(context):
    disk = os.path.join(context.home.root, "shared.qcow2")
    create_image(disk, "qcow2", 1 << 20)
    source = DiskFile(disk, "qcow2", 1 << 20)
    for name in ("one", "two"):
        create(context, name, source, Wish(settings=SMALL, own_disk=True))
    start(context, "one")
    with pytest.raises(Busy, match="in use"):
        start(context, "two")
    assert state.look(context.home.vm("two")).status == "stopped"


@pytest.mark.needs_root
def test_a_disk_in_a_closed_directory_is_handed_over_as_a_descriptor(context, tmp_path):
    tmp_path.chmod(0o700)
    disk = tmp_path / "mine.qcow2"
    create_image(str(disk), "qcow2", 1 << 20)
    before = disk.stat()
    create(context, "one", DiskFile(str(disk), "qcow2", 1 << 20), Wish(SMALL, own_disk=True))
    start(context, "one")
    after = disk.stat()
    assert (after.st_uid, after.st_mode) == (before.st_uid, before.st_mode)
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(["qemu-img", "info", str(disk)], check=True, capture_output=True)


@pytest.mark.needs_root
def test_a_base_image_that_qemu_cannot_reach_is_named(context, tmp_path):
    tmp_path.chmod(0o700)
    disk = tmp_path / "base.qcow2"
    create_image(str(disk), "qcow2", 1 << 20)
    create(context, "one", DiskFile(str(disk), "qcow2", 1 << 20), Wish(SMALL))
    with pytest.raises(HostError, match=r"base\.qcow2"):
        start(context, "one")


def test_the_words_of_a_qemu_that_dies_are_shown(context):
    make(context, "one", qemu={"args": ["-nonsense"]})
    with pytest.raises(QemuError) as caught:
        start(context, "one")
    assert "nonsense" in str(caught.value)
    paths = context.home.vm("one")
    assert state.look(paths).status == "stopped"
    assert not os.path.exists(paths.runtime)


def test_a_missing_qemu_is_a_missing_package(context):
    paths = make(context, "one")
    text = Path(paths.spec).read_text()
    with open(paths.spec, "w") as file:
        file.write(text + '\n[qemu]\nbinary = "qemu-system-nowhere"\n')
    with pytest.raises(Exception, match="qemu-system-nowhere"):
        start(context, "one")


def test_settings_change_and_comments_stay(context):
    paths = make(context, "one")
    text = Path(paths.spec).read_text()
    with open(paths.spec, "w") as file:
        file.write(text.replace('memory = "64M"', 'memory = "64M"  # as small as can be'))
    set_values(context, "one", {"memory": "96M", "cpu.vcpus": "2", "disks[0].serial": "S1"})
    machine = load_spec(paths)
    assert (machine.memory, machine.cpu.vcpus, machine.disks[0].serial) == (96 << 20, 2, "S1")
    assert "# as small as can be" in Path(paths.spec).read_text()
    with pytest.raises(SpecError):
        set_values(context, "one", {"memory": "128M", "disks[0].bus": "scuzzy"})
    assert load_spec(paths).memory == 96 << 20
    with pytest.raises(UsageError, match="identity"):
        set_values(context, "one", {"uuid": "x"})


def test_a_damaged_description_names_file_and_line(context):
    paths = make(context, "one")
    with open(paths.spec, "a") as file:
        file.write("\n[cpu]\nvcpus = 0\n")
    with pytest.raises(SpecError) as caught:
        start(context, "one")
    assert caught.value.line > 1
    assert "cpu" in str(caught.value)


def test_a_damaged_record_does_not_hide_the_others(context):
    make(context, "one")
    make(context, "two")
    with open(context.home.vm("one").record, "w") as file:
        file.write("{")
    rows = {row.name: row.status for row in list_machines(context)}
    assert rows == {"one": "damaged", "two": "stopped"}


def test_renaming_needs_a_machine_that_is_down_and_a_free_name(context):
    make(context, "one")
    make(context, "two")
    with pytest.raises(AlreadyExists):
        rename(context, "one", "two")
    rename(context, "one", "three")
    assert machine_names(context.home) == ["three", "two"]
    assert start(context, "three")
    with pytest.raises(Exception, match="running"):
        rename(context, "three", "four")


def test_a_copied_home_does_not_touch_the_machines_of_the_first(context):
    make(context, "one")
    start(context, "one")
    copy = context.home.root + "-copy"
    subprocess.run(["cp", "-a", context.home.root, copy], check=True)
    try:
        from wirt.store.layout import home_at
        from wirt.vm.context import Context

        other = Context(home_at(copy))
        assert state.look(other.home.vm("one")).status == "stopped"
        assert start(other, "one") is True
        assert stop(other, "one", force=True)
        assert state.look(context.home.vm("one")).status == "running"
        remove(other, "one")
    finally:
        shutil.rmtree(copy)


def test_after_a_reboot_of_the_host_the_machine_is_stopped_and_says_why(context):
    make(context, "one")
    start(context, "one")
    paths = context.home.vm("one")
    before = read_record(paths.record)
    stop(context, "one", force=True)
    run = msgspec.structs.replace(before.run, boot_id="another boot", pid=os.getpid())
    write_record(paths.record, msgspec.structs.replace(before, run=run))
    found = state.look(paths)
    assert (found.status, found.note) == ("stopped", "the host rebooted")
    assert start(context, "one") is True


def test_a_reused_pid_is_never_taken_for_the_machine(context):
    make(context, "one")
    start(context, "one")
    paths = context.home.vm("one")
    before = read_record(paths.record)
    stop(context, "one", force=True)
    with subprocess.Popen(["sleep", "60"]) as stranger:
        run = msgspec.structs.replace(before.run, pid=stranger.pid)
        write_record(paths.record, msgspec.structs.replace(before, run=run))
        assert state.look(paths).status == "stopped"
        stop(context, "one", force=True)
        remove(context, "one", force=True)
        assert stranger.poll() is None
        stranger.kill()


def test_a_qemu_that_was_killed_is_noticed_and_can_start_again(context):
    make(context, "one")
    start(context, "one")
    paths = context.home.vm("one")
    process = state.process_of(read_record(paths.record))
    process.kill()
    assert process.wait(60)
    found = state.look(paths)
    assert found.status == "stopped"
    assert "by itself" in found.note
    assert start(context, "one") is True


def test_a_start_that_was_killed_before_it_was_recorded_is_undone(context):
    """The state right after spawn: QEMU runs paused, the record says ``starting``."""
    make(context, "one")
    start(context, "one")
    paths = context.home.vm("one")
    record = read_record(paths.record)
    half = msgspec.structs.replace(record, phase="starting")
    write_record(paths.record, half)
    assert state.look(paths).status == "starting"
    old = state.process_of(record)
    assert start(context, "one") is True
    assert not old.alive()
    assert len(processes_with(paths.run_lock)) == 1


def test_killing_the_keeper_kills_no_machine_and_the_console_comes_back(context, cli):
    make(context, "one")
    start(context, "one")
    paths = context.home.vm("one")
    keepers = _keepers(paths)
    assert len(keepers) == 1
    assert keepers[0].kill()
    assert keepers[0].wait(60)
    assert state.look(paths).status == "running"
    assert cli("console", "one").returncode == 0
    assert len(_keepers(paths)) == 1


def _keepers(paths):
    """Return the processes that have the console log open."""
    return processes_with(paths.console_log)


FLOOD = bytes.fromhex("ba f8 03 b0 78 ee eb fd".replace(" ", ""))
"""mov dx, 0x3f8; mov al, 'x'; out dx, al; jmp back: a boot sector that floods COM1."""


def test_a_guest_that_floods_its_console_fills_nothing(context):
    from wirt.vm.keeping import LOG_LIMIT

    disk = os.path.join(context.home.root, "flood.raw")
    with open(disk, "wb") as file:
        file.write(FLOOD.ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    source = DiskFile(disk, "raw", os.path.getsize(disk))
    create(context, "flood", source, Wish(settings=SMALL))
    start(context, "flood")
    paths = context.home.vm("flood")
    deadline = time.monotonic() + 600
    while _size_of(paths.log) < LOG_LIMIT:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for _ in range(20):
        time.sleep(0.1)
        assert _size_of(paths.log) <= 2 * LOG_LIMIT + (1 << 16)


def _size_of(directory):
    """Return the bytes in a directory, in which a log may just be changing its name."""
    total = 0
    for name in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):
            total += os.path.getsize(os.path.join(directory, name))
    return total


def test_a_hundred_commands_at_once_end_in_some_order_with_one_qemu(context, cli):
    make(context, "one")
    paths = context.home.vm("one")
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    verbs = [["start", "one"], ["stop", "--force", "one"], ["ls", "--json"], ["pause", "one"]]
    running = [
        cli.start(*rng.choice(verbs), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(100)
    ]
    most = 0
    while any(process.poll() is None for process in running):
        # A look takes its time: one may end, and the next begin, while it lasts. But who is seen
        # in the next one too was there all the time between.
        most = max(most, len(set(_qemus(paths.root)) & set(_qemus(paths.root))))
        time.sleep(0.1)
    for process in running:
        error = process.stderr.read().decode()
        process.stderr.close()
        assert process.wait() in {0, 7}, (seed, error)
        assert "Traceback" not in error
    assert most <= 1, seed
    assert len(_qemus(paths.root)) == (1 if state.look(paths).is_up else 0)


def _qemus(root):
    """Return the QEMU processes of machines under ``root``, by their command line."""
    found = []
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    line = file.read()
            except OSError:
                continue
            words = line.split(b"\0")
            if b"qemu-system" in words[0] and f"{root}/".encode() in line:
                found.append(int(pid))
    return found


def test_wirt_can_be_killed_at_any_moment(context, cli):
    """100 kills in create, start, stop and rm: every command works on, nothing is left."""
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    for turn in range(100):
        words = _random_command(rng, cli, context)
        process = cli.start(*words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.random() * 0.7)
        process.kill()
        process.wait()
        if turn % 10 == 9:
            listed = cli("ls", "--json")
            assert listed.returncode == 0, (seed, listed.stderr)
            names = [row["name"] for row in json.loads(listed.stdout)]
            assert names == machine_names(context.home)
            assert all(row["status"] != "damaged" for row in json.loads(listed.stdout)), seed
    for name in machine_names(context.home):
        assert cli("start", name).returncode == 0, seed
        assert cli("stop", "--force", name).returncode == 0, seed
        assert cli("rm", name).returncode == 0, seed
    make(context, "last")  # sweeps
    remove(context, "last")
    _old_garbage(context)
    assert _qemus(context.home.root) == [], seed
    left = [
        os.path.join(folder, name)
        for folder, _, files in os.walk(context.home.vms)
        for name in files
    ]
    assert left == [], seed


def _random_command(rng, cli, context):
    name = f"m{rng.randrange(3)}"
    verb = rng.choice(["create", "start", "start", "stop", "rm"])
    if verb == "create":
        return ["create", name, "-m", "64M", "--disk-size", "1M", "--video", "none"]
    if verb == "stop":
        return ["stop", "--force", name]
    if verb == "rm":
        return ["rm", "--force", name]
    return ["start", name]


def _old_garbage(context):
    """Directories without a lock file are swept after a minute: let it pass."""
    for entry in os.scandir(context.home.vms):
        os.utime(entry.path, (0, 0))
    from wirt.store.machines import sweep

    sweep(context.home)


def test_a_pid_that_wirt_cannot_see_is_gone():
    assert ProcessId.of((1 << 22) - 1) is None


def test_ctrl_c_at_any_moment_leaves_nothing(context, cli):
    """20 interrupts in create and start: one line, no traceback, no process, no directory."""
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    for turn in range(20):
        verb = ["create", "one", "-m", "64M", "--disk-size", "1M"] if turn % 2 else ["start", "one"]
        process = cli.start(*verb, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        time.sleep(0.15 + rng.random() * 0.4)
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=300)[1].decode()
        if "init_import_site" in error:
            continue  # Python was still starting: nothing of wirt had run
        assert process.returncode in {0, 4, 5, 130, -signal.SIGINT}, (seed, error)
        assert "Traceback" not in error or process.returncode == -signal.SIGINT, (seed, error)
    assert [name for name in os.listdir(context.home.vms) if name.startswith(".")] == []
    for name in machine_names(context.home):
        remove(context, name, force=True)
    assert _qemus(context.home.root) == []


def test_a_disk_that_is_full_is_said_and_harms_nothing(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    from wirt.errors import ImageNoSpace
    from wirt.store.layout import Home

    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(place)], check=True)
    try:
        context = Context(Home(str(place / "home"), str(tmp_path / "run")))
        make(context, "one")
        (place / "filler").write_bytes(b"x" * (os.statvfs(place).f_bavail * 4096))
        with pytest.raises((NoSpace, ImageNoSpace)):
            make(context, "two")
        assert machine_names(context.home) == ["one"]
        (place / "filler").unlink()
        make(context, "two")
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_machine_stops_although_that_cannot_be_written_down(context, monkeypatch):
    make(context, "one")
    start(context, "one")

    def full(*_):
        raise NoSpace("state.json: no space left")

    said = []
    with monkeypatch.context() as patch:
        patch.setattr("wirt.vm.stop.write_record", full)
        assert stop(Context(context.home, said.append), "one", force=True)
    assert "cannot be written down" in said[-1]
    assert state.look(context.home.vm("one")).status == "stopped"
    assert start(context, "one")
    assert stop(context, "one", force=True)


def test_a_file_of_no_known_format_is_not_taken_for_a_disk(context):
    from wirt.errors import NotThisFormat
    from wirt.vm.source import resolve

    text = os.path.join(context.home.root, "notes")
    with open(text, "w") as file:
        file.write("x" * 5000)
    with pytest.raises(NotThisFormat) as caught:
        resolve(context, text)
    assert "--format raw" in caught.value.hint
    assert resolve(context, text, image_format="raw").virtual_size == 5120
