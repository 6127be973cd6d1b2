"""Going back to a snapshot: what comes back, and that a kill leaves the old or the new.

The machines have no guest but where its memory is what matters.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.vm.test_fork_faults import kill_at, make, require_clean, require_running
from tests.vm.test_snapshots import holds_byte, names, write
from wirt.errors import NotFound, QemuError, WrongState
from wirt.host.holders import processes_with
from wirt.image.exchange import exchange
from wirt.store import states
from wirt.store.machines import machine_names
from wirt.store.record import read_record
from wirt.vm import state
from wirt.vm.create import Wish, create
from wirt.vm.description import load_spec
from wirt.vm.forking import back
from wirt.vm.restore import REPLACED, restore, undo
from wirt.vm.snapshot import list_snapshots, snapshot
from wirt.vm.start import start
from wirt.vm.stop import stop
from wirt.vm.vm import Vm

pytestmark = [pytest.mark.needs_qemu]

FORWARD = {"type": "user", "forwards": [{"host_port": 0, "guest_port": 22}]}


def test_two_names_change_places_in_one_step(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "is").write_text(name)
    exchange(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (tmp_path / "a" / "is").read_text() == "b"
    with pytest.raises(FileNotFoundError):
        exchange(str(tmp_path / "a"), str(tmp_path / "none"))


def test_a_machine_goes_back_forth_and_into_a_new_one(context, cli):
    make(context, nics=[{"backend": FORWARD}])
    paths = context.home.vm("src")
    before = load_spec(paths)
    write(context, "src", 1)
    snapshot(context, "src", "one")
    ports = state.look(paths).record.run.forwards
    write(context, "src", 2)
    snapshot(context, "src", "two")
    write(context, "src", 3)
    old = read_record(paths.record).run.process
    done = cli("restore", "src", "one", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["running"], said["kept"], said["machine"]) == (True, REPLACED, "src")
    require_running(context)
    assert not old.alive()
    assert holds_byte(context, "src", 1)
    line = " ".join(read_record(paths.record).run.argv)
    assert os.path.join(paths.disks, "disk0.qcow2") in line
    assert ".new-" not in line
    assert names(context) == ["one", "two", REPLACED]
    assert load_spec(paths) == before
    assert state.look(paths).record.run.forwards == ports
    assert os.listdir(context.home.vms) == ["src"]

    restore(context, "src", REPLACED)
    assert holds_byte(context, "src", 3)
    assert undo(context, "src").snapshot == "two"
    assert holds_byte(context, "src", 2)
    require_running(context)

    restore(context, "src", "one", to="new")
    assert holds_byte(context, "new", 1)
    assert load_spec(context.home.vm("new")).uuid != before.uuid
    assert names(context, "new") == []
    write(context, "new", 4)
    restore(context, "src", "one", discard=True)
    assert holds_byte(context, "src", 1)
    stop(context, "src", force=True)
    start(context, "src")
    assert holds_byte(context, "src", 1)
    snapshot(context, "src", "three")
    stop(context, "src", force=True)
    restore(context, "src", "three", discard=True)  # of one that is down
    require_running(context)
    require_running(context, "new")
    with pytest.raises(NotFound):
        restore(context, "src", "none")
    require_clean(context)


def test_a_snapshot_of_a_machine_that_was_down_brings_back_the_disks(context):
    make(context)
    write(context, "src", 1)
    stop(context, "src", force=True)
    snapshot(context, "src", "down")
    start(context, "src")
    write(context, "src", 2)
    done = restore(context, "src", "down")
    assert not done.running
    assert state.look(context.home.vm("src")).status == "stopped"
    assert names(context) == ["down", REPLACED]
    restore(context, "src", "down", to="new")
    for name in ("src", "new"):
        start(context, name)
        assert holds_byte(context, name, 1)
        require_running(context, name)
    restore(context, "src", REPLACED, discard=True)
    assert holds_byte(context, "src", 2)
    require_running(context)
    require_clean(context)


def test_the_library_does_what_the_verbs_do(context):
    make(context)
    src = Vm("src", context)
    write(context, "src", 1)
    taken = src.snapshot("one")
    assert (taken.machine, taken.name, taken.memory) == ("src", "one", True)
    assert taken.pause > 0
    write(context, "src", 2)
    done = src.undo()
    assert (done.snapshot, done.kept, done.running) == ("one", REPLACED, True)
    assert holds_byte(context, "src", 1)
    assert src.restore(REPLACED, discard=True).kept == ""
    assert holds_byte(context, "src", 2)
    new = src.restore_to("one", "new")
    assert (new.name, new.status) == ("new", "running")
    assert holds_byte(context, "new", 1)
    assert [fork.name for fork in src.forks(2)] == ["src-1", "src-2"]
    assert [(row.name, row.memory) for row in src.snapshots()] == [("one", True), (REPLACED, True)]
    src.remove_snapshot(REPLACED)
    assert [row.name for row in src.snapshots()] == ["one"]
    with pytest.raises(NotFound):
        src.restore("none")
    for name in ("src", "src-2", "new"):
        require_running(context, name)
    require_clean(context)


@pytest.mark.parametrize("point", ["restore-filled", "child-loaded", "restore-ready", "exchanged",
                                   "first-ended", "handed-over"])  # fmt: skip
def test_wirt_killed_at_any_step_leaves_the_old_or_the_new(context, point):
    make(context)
    write(context, "src", 1)
    snapshot(context, "src", "one")
    write(context, "src", 2)
    code, said = kill_at(context, point, "restore", "src", "one", "--discard")
    assert code == -9, said
    require_running(context)
    assert holds_byte(
        context, "src", 1 if point in {"exchanged", "first-ended", "handed-over"} else 2
    )
    assert names(context) == ["one"]
    create(context, "x", None, Wish(settings={"memory": "64M"}, disk_size=1 << 20))  # this sweeps
    assert machine_names(context.home) == ["src", "x"]
    assert sorted(os.listdir(context.home.vms)) == ["src", "x"]
    require_running(context)
    restore(context, "src", "one")
    assert holds_byte(context, "src", 1)
    require_clean(context)


OLD = ("restore-filled", "child-begun", "child-loaded", "restore-ready")
NEW = ("exchanged", "first-ended", "handed-over")


def test_qemu_killed_at_any_step_leaves_disks_that_start(context):
    """Before the directories change places, the victims are the old QEMU or the new one."""
    make(context)
    write(context, "src", 1)
    snapshot(context, "src", "one")
    home = context.home
    old, new = home.vm("src").run_lock, os.path.join(home.vms, ".new-*", "run.lock")
    for point, victim in [(point, lock) for point in OLD for lock in (old, new)] + [
        (point, old) for point in NEW
    ]:
        if (point, victim) == ("restore-filled", new):
            continue  # it is not there yet
        write(context, "src", 2)
        code, said = kill_at(context, f"{point}={victim}", "restore", "src", "one", "--discard")
        assert "Traceback" not in said, (point, victim, said)
        if victim == new and point in {"child-begun", "child-loaded"}:
            assert code > 0, point
            require_running(context)
            assert holds_byte(context, "src", 2)
        assert machine_names(home) == ["src"]
        start(context, "src")
        require_running(context)
        gone_back = point in NEW or (victim == old and code == 0)
        assert holds_byte(context, "src", 1) or not gone_back, (point, victim, said)
        assert holds_byte(context, "src", 1) != holds_byte(context, "src", 2)
        assert names(context) == ["one"]
    require_clean(context)


def test_a_state_that_qemu_refuses_leaves_the_machine_running(context, monkeypatch):
    make(context)
    taken = snapshot(context, "src", "one")
    write(context, "src", 2)
    devices = states.find_state(context.home, taken.state).paths.devices
    with open(devices, "rb") as file:
        whole = file.read()
    with open(devices, "wb") as file:
        file.write(whole[: len(whole) // 2])
    with pytest.raises(QemuError):
        restore(context, "src", "one")
    require_running(context)
    assert holds_byte(context, "src", 2)
    assert [row.name for row in list_snapshots(context, "src")] == ["one", REPLACED]
    assert len(processes_with(context.home.vm("src").run_lock)) == 1
    with open(devices, "wb") as file:
        file.write(whole)

    def full(_source, _target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(back, "_copy", full)
    with pytest.raises(Exception, match="no space left"):
        restore(context, "src", "one", discard=True)
    require_running(context)
    assert os.listdir(context.home.vms) == ["src"]
    require_clean(context)


def test_what_two_cannot_have_at_once_is_refused_while_it_runs(context):
    make(context, serials=[{"backend": {"type": "file", "path": "/dev/null"}}])
    snapshot(context, "src", "one")
    with pytest.raises(WrongState, match="serial port"):
        restore(context, "src", "one")
    require_running(context)
    assert names(context) == ["one"]
    require_clean(context)


def test_a_log_that_a_guest_made_a_link_is_not_followed(context, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    make(context)
    snapshot(context, "src", "one")
    paths = context.home.vm("src")
    os.unlink(paths.console_log)
    os.symlink(secret, paths.console_log)
    restore(context, "src", "one", discard=True)
    logs = [os.path.join(paths.log, name) for name in os.listdir(paths.log)]
    assert not [log for log in logs if os.path.islink(log) or "secret" in Path(log).read_text()]
    require_running(context)
    require_clean(context)
