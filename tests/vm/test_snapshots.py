"""Snapshots: what is kept, what a kill leaves, and that nothing stays behind.

The machines have no guest: their firmware runs, which is enough to be frozen.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.vm.test_fork_faults import (
    FREEZE,
    kill_at,
    make,
    memory_files,
    require_clean,
    require_running,
)
from wirt.errors import AlreadyExists, NoSpace, NotFound, UsageError, WrongState
from wirt.image.base import AllowLocalFiles
from wirt.image.open import open_image
from wirt.store import kept_memory, states
from wirt.store import snapshots as store
from wirt.store.record import read_record
from wirt.vm import state
from wirt.vm.create import Wish, create
from wirt.vm.monitor import connect
from wirt.vm.remove import remove
from wirt.vm.restore import restore
from wirt.vm.snapshot import list_snapshots, remove_snapshot, snapshot
from wirt.vm.start import start
from wirt.vm.stop import stop

pytestmark = [pytest.mark.needs_qemu]


DRIVE = "-d /machine/peripheral/disk0/virtio-backend"


def qemu_io(context, name, command):
    """Let QEMU write to the disk as its guest would."""
    paths = context.home.vm(name)
    line = {"command-line": f'qemu-io {DRIVE} "{command}"'}
    with connect(paths, read_record(paths.record)) as qmp:
        said = qmp.execute("human-monitor-command", line, reply=str)
    assert said == ""  # what it has to say of a failure; all else goes to QEMU's own output


def write(context, name, byte):
    qemu_io(context, name, f"write -P {byte} 64k 64k")
    qemu_io(context, name, "flush")


def holds_byte(context, name, byte):
    """Tell whether what ``write`` wrote last is on the disk, read by wirt."""
    if state.look(context.home.vm(name)).is_up:
        qemu_io(context, name, "flush")
    image = os.path.join(context.home.vm(name).disks, "disk0.qcow2")
    with open_image(image, format="qcow2", gate=AllowLocalFiles(), force_share=True) as disk:
        return disk.pread(65536, 65536) == bytes([byte]) * 65536


def names(context, machine="src"):
    return [row.name for row in list_snapshots(context, machine)]


def test_a_running_machine_is_kept_with_memory_and_goes_on(context, cli):
    make(context)
    write(context, "src", 1)
    first = snapshot(context, "src", "one")
    assert (first.memory, first.method) == (True, "freeze")
    require_running(context)
    write(context, "src", 2)
    done = cli("snapshot", "src", "two", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["method"] == "stream"
    require_running(context)
    rows = json.loads(cli("snapshots", "src", "--json").stdout)
    assert [(row["name"], row["memory"], row["note"]) for row in rows] == [
        ("one", True, ""), ("two", True, ""),
    ]  # fmt: skip
    for row in rows:
        kept = states.find_state(context.home, row["state"])
        assert kept.memory == kept.paths.kept_memory
        assert row["on_disk"] > 0
    assert memory_files(context) == []
    assert b"two" in cli("snapshots", "src").stdout
    with pytest.raises(AlreadyExists):
        snapshot(context, "src", "one")
    with pytest.raises(UsageError):
        snapshot(context, "src", "../one")
    assert cli("snapshots", "src", "--rm", "one").returncode == 0
    assert names(context) == ["two"]
    with pytest.raises(NotFound):
        remove_snapshot(context, "src", "one")
    assert holds_byte(context, "src", 2)
    require_clean(context)


@pytest.mark.needs_qemu_img
def test_of_a_machine_that_is_down_the_disks_are_kept(context):
    make(context)
    write(context, "src", 1)
    stop(context, "src", force=True)
    taken = snapshot(context, "src", "down")
    assert (taken.memory, taken.method) == (False, "disks")
    [disk] = states.find_state(context.home, taken.state).manifest.disks
    frozen = os.path.join(context.home.state(taken.state).root, disk.file)
    before = Path(frozen).read_bytes()
    start(context, "src")
    assert holds_byte(context, "src", 1)
    write(context, "src", 2)
    require_running(context)
    stop(context, "src", force=True)
    assert Path(frozen).read_bytes() == before
    subprocess.run(["qemu-img", "check", frozen], check=True, capture_output=True)
    snapshot(context, "src", "deeper")
    remove_snapshot(context, "src", "down")
    start(context, "src")
    assert holds_byte(context, "src", 2)
    require_clean(context)


def test_a_disk_of_the_users_own_is_refused_and_untouched(context, tmp_path):
    make(context)
    stop(context, "src", force=True)
    own = tmp_path / "own.raw"
    own.write_bytes(bytes(1 << 20))
    paths = context.home.vm("src")
    with open(paths.spec, "a") as file:
        file.write(f'\n[[disks]]\nimage = "{own}"\nformat = "raw"\n')
    before = read_record(paths.record)
    with pytest.raises(WrongState, match="a file of yours"):
        snapshot(context, "src", "no")
    assert read_record(paths.record) == before
    assert names(context) == []
    require_clean(context)


@pytest.mark.parametrize("up", [True, False], ids=["running", "down"])
def test_wirt_killed_while_it_makes_a_snapshot(context, up):
    points = ["snapshot-frozen", "snapshot-kept", "snapshot-named"]
    points += [] if up else ["journaled", "take-name", "state-published", "disks-frozen"]
    make(context)
    write(context, "src", 7)
    if not up:
        stop(context, "src", force=True)
    for point in points:
        code, said = kill_at(context, point, "snapshot", "src", point)
        assert code == -9, (point, said)
        assert state.look(context.home.vm("src")).status == ("running" if up else "stopped")
        assert names(context) == (["snapshot-named"] if point == "snapshot-named" else []), point
        if point == "snapshot-named":
            remove_snapshot(context, "src", point)
    if not up:
        start(context, "src")
    require_running(context)
    assert holds_byte(context, "src", 7)
    require_clean(context)


def test_qemu_killed_while_a_snapshot_is_made(context):
    """It is there whole or not at all, and the machine starts."""
    make(context)
    write(context, "src", 7)
    lock = context.home.vm("src").run_lock
    for point in (*FREEZE, "snapshot-frozen", "snapshot-kept", "snapshot-named"):
        code, said = kill_at(context, f"{point}={lock}", "snapshot", "src", "one")
        assert "Traceback" not in said, (point, said)
        assert state.look(context.home.vm("src")).status == "stopped", point
        assert names(context) == (["one"] if code == 0 else []), (point, said)
        start(context, "src")
        require_running(context)
        assert holds_byte(context, "src", 7)
        if code == 0:
            restore(context, "src", "one", to="copy")
            require_running(context, "copy")
            assert holds_byte(context, "copy", 7)
            remove(context, "copy", force=True)
            remove_snapshot(context, "src", "one")
    require_clean(context)


def test_a_hold_without_a_record_is_let_go_and_one_in_the_making_stays(context):
    make(context)
    taken = snapshot(context, "src", "one")
    kept = states.find_state(context.home, taken.state)
    os.unlink(context.home.vm("src").snapshot("one"))
    states.hold(kept, states.process_label())
    store.sweep(context.home)
    assert "snapshot-one" in states.holds(kept.paths)
    states.release(kept, states.process_label())
    store.sweep(context.home)
    assert states.holds(kept.paths) == []
    require_clean(context)


def test_a_full_disk_leaves_the_machine_running_and_no_snapshot(context, monkeypatch):
    make(context)

    def full(_source, _target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(kept_memory, "_copy", full)
        with pytest.raises(NoSpace):
            snapshot(context, "src", "one")
    require_running(context)
    assert names(context) == []
    snapshot(context, "src", "one")
    require_clean(context)


def test_snapshots_go_with_their_machine(context):
    create(context, "src", None, Wish(settings={"memory": "64M", "nics": []}, disk_size=1 << 20))
    ids = {snapshot(context, "src", name).state for name in ("a", "b")}
    assert ids == set(states.state_ids(context.home))
    remove(context, "src")
    assert states.state_ids(context.home) == []
