"""``wirt keep``: machines and snapshots that need no state below them, and what a kill leaves.

The machines have no guest: their firmware runs, and the tests write through QEMU.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from tests.vm.test_fork_faults import (
    SETTINGS,
    kill_at,
    opened_by,
    require_clean,
    require_running,
)
from tests.vm.test_fork_faults import small as small_fixture
from tests.vm.test_snapshots import qemu_io
from wirt.errors import ImageNoSpace, NoSpace, NotFound, WrongState
from wirt.image.base import AllowLocalFiles
from wirt.image.open import open_image
from wirt.protocols.qmp.messages import JobInfo
from wirt.spec import toml
from wirt.store import states
from wirt.store.layout import home_at
from wirt.store.machines import machine_names
from wirt.store.record import read_record
from wirt.vm import keep as module
from wirt.vm import state
from wirt.vm.context import Context
from wirt.vm.create import Wish, create
from wirt.vm.description import load_spec
from wirt.vm.forking.fork import fork
from wirt.vm.keep import keep
from wirt.vm.monitor import connect
from wirt.vm.remove import remove
from wirt.vm.restore import restore
from wirt.vm.snapshot import remove_snapshot, snapshot
from wirt.vm.source import resolve_or_build
from wirt.vm.start import start
from wirt.vm.stop import stop
from wirt.vm.vm import Vm

pytestmark = [pytest.mark.needs_qemu, pytest.mark.needs_qemu_img]

small = small_fixture

SIZE = 8 << 20
DOWN = ("keep-written", "keep-renamed", "keep-recorded")
RUNNING = ("stream-began", "stream-copied", "stream-flushed", "stream-finished", "keep-recorded")


def make(context, name="src"):
    """A running machine over a raw image, with something written."""
    base = Path(context.home.root, "base.raw")
    if not base.exists():
        base.write_bytes(random.Random(3).randbytes(SIZE // 2) + bytes(SIZE // 2))
    source = resolve_or_build(context, str(base), image_format="raw")
    create(context, name, source, Wish(settings=SETTINGS, disk_size=SIZE + (1 << 20)))
    start(context, name)
    write(context, name, 1)
    return str(base)


def write(context, name, number):
    """Write here and there, zeros too, and let it reach the disk."""
    at = number % 50 * 150
    qemu_io(context, name, f"write -P {number} {at}k 70k")
    qemu_io(context, name, f"write -z {at + 100}k 20k")
    qemu_io(context, name, f"write -P {number} {SIZE - 4096} 64k")
    qemu_io(context, name, "flush")


def image_of(context, name="src"):
    return os.path.join(context.home.vm(name).disks, "disk0.qcow2")


def contents(path):
    with open_image(path, format="qcow2", gate=AllowLocalFiles(), force_share=True) as disk:
        return hashlib.sha256(disk.pread(0, disk.virtual_size)).hexdigest()


def chain(path):
    """Return what an image stands on, as qemu-img sees it."""
    words = ["qemu-img", "info", "-U", "--backing-chain", "--output", "json", path]
    done = subprocess.run(words, check=True, capture_output=True)
    return [one["filename"] for one in json.loads(done.stdout)[1:]]


def require_sound(path):
    done = subprocess.run(["qemu-img", "check", "-U", path], check=False, capture_output=True)
    assert done.returncode == 0, done.stdout


def require_nothing_left(directory):
    assert [name for name in os.listdir(directory) if name.startswith(".")] == []


def jobs(context):
    paths = context.home.vm("src")
    with connect(paths, read_record(paths.record)) as qmp:
        return qmp.execute("query-jobs", reply=list[JobInfo])


def test_a_machine_that_is_down_lets_go_of_its_family(context, cli):
    base = make(context)
    snapshot(context, "src", "one")
    write(context, "src", 2)
    fork(context, "src", ["new"])
    write(context, "new", 3)
    write(context, "src", 4)
    stop(context, "new", force=True)
    before = contents(image_of(context, "new"))
    others = contents(image_of(context))
    inside = ["qemu-img", "snapshot", image_of(context, "new")]
    subprocess.run([*inside, "-c", "mine"], check=True)
    with pytest.raises(WrongState, match="would be lost"):
        keep(context, "new")
    subprocess.run([*inside, "-d", "mine"], check=True)
    done = cli("keep", "new", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["name"], said["disks"], said["stands_on"]) == ("new", ["disk0"], [base])
    assert said["removed"] == []  # src needs them all
    assert said["on_disk"] > 0
    assert read_record(context.home.vm("new").record).state == ""
    assert contents(image_of(context, "new")) == before
    assert chain(image_of(context, "new")) == [base]
    require_sound(image_of(context, "new"))
    require_nothing_left(context.home.vm("new").disks)
    assert contents(image_of(context)) == others
    require_running(context)
    remove(context, "src", force=True)
    assert states.state_ids(context.home) == []
    start(context, "new")
    require_running(context, "new")
    assert contents(image_of(context, "new")) == before
    assert keep(context, "new").disks == ()
    stop(context, "new", force=True)
    assert keep(context, "new", alone=True).stands_on == ()
    os.rename(base, f"{base}.away")
    assert contents(image_of(context, "new")) == before
    start(context, "new")
    assert cli("keep", "new").stdout == b"new: stood on no state\n"
    require_clean(context)


def test_a_machine_that_runs_goes_on_and_lets_go_of_its_family(context):
    base = make(context)
    snapshot(context, "src", "one")  # by handing over
    write(context, "src", 2)
    snapshot(context, "src", "two")  # by copying
    write(context, "src", 3)
    fork(context, "src", ["new"])
    before = contents(image_of(context))
    process = read_record(context.home.vm("src").record).run.process
    done = Vm("src", context).keep()
    assert (done.disks, done.stands_on) == (("disk0",), (base,))
    assert read_record(context.home.vm("src").record).run.process == process
    require_running(context)
    assert jobs(context) == []
    assert contents(image_of(context)) == before
    assert chain(image_of(context)) == [base]
    require_sound(image_of(context))
    opened = list(opened_by(process.pid, os.readlink))
    assert opened
    assert not [path for path in opened if "/states/" in path and "qcow2" in path]
    write(context, "src", 4)
    after = contents(image_of(context))
    remove_snapshot(context, "src", "one")
    remove_snapshot(context, "src", "two")
    remove(context, "new", force=True)
    assert states.state_ids(context.home) == []
    assert contents(image_of(context)) == after
    snapshot(context, "src", "three")
    remove_snapshot(context, "src", "three")
    fork(context, "src", ["new"])
    assert contents(image_of(context, "new")) == after
    assert keep(context, "new", alone=True).stands_on == ()
    assert chain(image_of(context, "new")) == []
    assert contents(image_of(context, "new")) == after
    done = keep(context, "src")
    assert len(done.removed) == 2  # new has let go of them already
    stop(context, "src", force=True)
    start(context, "src")
    assert contents(image_of(context)) == after
    require_clean(context)


def test_a_snapshot_in_the_middle_is_kept_and_the_one_below_goes(context, cli):
    base = make(context)
    taken = {}
    for number, name in enumerate(("one", "two", "three"), 2):
        taken[name] = snapshot(context, "src", name).state
        write(context, "src", number)
    now = contents(image_of(context))
    two = states.find_state(context.home, taken["two"])
    image = os.path.join(two.paths.root, two.manifest.disks[0].file)
    before, mode = contents(image), os.stat(image)
    done = cli("snapshots", "src", "--rm", "one", "--json")
    assert json.loads(done.stdout)["needed_by"] == [f"state {taken['two']}"]
    assert taken["one"] in states.state_ids(context.home)
    done = keep(context, "src:two")
    assert (done.removed, done.stands_on) == ((taken["one"],), (base,))
    assert contents(image) == before
    assert (os.stat(image).st_mode, os.stat(image).st_gid) == (mode.st_mode, mode.st_gid)
    assert states.find_state(context.home, two.id).manifest.parent == ""
    require_nothing_left(two.paths.root)
    assert contents(image_of(context)) == now
    require_running(context)
    restore(context, "src", "two")
    assert contents(image_of(context)) == before
    restore(context, "src", "replaced", to="new")
    assert contents(image_of(context, "new")) == now
    require_running(context, "new")
    with pytest.raises(NotFound):
        keep(context, "src:none")
    require_clean(context)


@pytest.mark.parametrize("point", DOWN)
def test_wirt_killed_while_it_keeps_a_machine_that_is_down(context, point):
    make(context)
    taken = snapshot(context, "src", "one").state
    stop(context, "src", force=True)
    before = contents(image_of(context))
    code, said = kill_at(context, point, "keep", "src")
    assert code == -9, said
    assert contents(image_of(context)) == before
    assert taken in states.state_ids(context.home)
    start(context, "src")
    require_sound(image_of(context))
    stop(context, "src", force=True)
    keep(context, "src")
    require_nothing_left(context.home.vm("src").disks)
    remove_snapshot(context, "src", "one")
    assert states.state_ids(context.home) == []
    assert contents(image_of(context)) == before
    require_clean(context)


@pytest.mark.parametrize("point", DOWN)
def test_wirt_killed_while_it_keeps_a_snapshot(context, point):
    make(context)
    snapshot(context, "src", "one")
    write(context, "src", 2)
    two = states.find_state(context.home, snapshot(context, "src", "two").state)
    image = os.path.join(two.paths.root, two.manifest.disks[0].file)
    before, now = contents(image), contents(image_of(context))
    code, said = kill_at(context, point, "keep", "src:two")
    assert code == -9, said
    assert (contents(image), contents(image_of(context))) == (before, now)
    require_running(context)
    states.sweep_states(context.home)
    keep(context, "src:two")
    require_nothing_left(two.paths.root)
    remove_snapshot(context, "src", "one")
    assert states.state_ids(context.home) == [two.id]
    assert (contents(image), contents(image_of(context))) == (before, now)
    restore(context, "src", "two", discard=True)
    assert contents(image_of(context)) == before
    require_clean(context)


def test_wirt_killed_at_any_step_while_it_keeps_a_machine_that_runs(context):
    make(context)
    for number, point in enumerate(RUNNING, 2):
        snapshot(context, "src", point)
        write(context, "src", number)
        before = contents(image_of(context))
        code, said = kill_at(context, point, "keep", "src")
        assert code == -9, (point, said)
        require_running(context)
        assert contents(image_of(context)) == before, point
        fork(context, "src", ["new"])  # what is left of the copying does not stand in the way
        assert contents(image_of(context, "new")) == before, point
        remove(context, "new", force=True)
        write(context, "src", number + 20)
        before = contents(image_of(context))
        keep(context, "src")
        assert contents(image_of(context)) == before, point
        assert jobs(context) == []
        remove_snapshot(context, "src", point)
        assert states.state_ids(context.home) == [], point
    require_running(context)
    require_clean(context)


def test_qemu_killed_at_any_step_while_it_is_kept(context):
    make(context)
    lock = context.home.vm("src").run_lock
    for number, point in enumerate(RUNNING, 2):
        snapshot(context, "src", point)
        write(context, "src", number)
        before = contents(image_of(context))
        code, said = kill_at(context, f"{point}={lock}", "keep", "src")
        assert "Traceback" not in said, (point, said)
        assert (code == 0) == (point == "keep-recorded"), (point, said)
        assert state.look(context.home.vm("src")).status == "stopped"
        assert contents(image_of(context)) == before, point
        start(context, "src")
        assert contents(image_of(context)) == before, point
        stop(context, "src", force=True)
        keep(context, "src")
        remove_snapshot(context, "src", point)
        assert states.state_ids(context.home) == [], point
        assert contents(image_of(context)) == before, point
        start(context, "src")
    require_clean(context)


@pytest.mark.parametrize("up", [True, False], ids=["running", "down"])
def test_who_interrupts_it_finds_all_as_it_was(context, up):
    make(context)
    taken = snapshot(context, "src", "one").state
    write(context, "src", 2)
    if not up:
        stop(context, "src", force=True)
    before, below = contents(image_of(context)), chain(image_of(context))

    def interrupt(_done, _total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep(context, "src", progress=interrupt)
    assert chain(image_of(context)) == below
    two = snapshot(context, "src", "two").state
    with pytest.raises(KeyboardInterrupt):
        keep(context, "src:two", progress=interrupt)
    assert chain(image_of(context))[1:] == below
    assert contents(image_of(context)) == before
    require_nothing_left(context.home.vm("src").disks)
    require_nothing_left(context.home.state(two).root)
    assert read_record(context.home.vm("src").record).state
    assert taken in states.state_ids(context.home)
    if up:
        assert jobs(context) == []
        require_running(context)
    require_clean(context)


def test_a_cd_that_lies_in_a_state_becomes_the_machines_own(context):
    make(context)
    stop(context, "src", force=True)
    paths = context.home.vm("src")
    Path(paths.disks, "cd.iso").write_bytes(b"cd" * 4096)
    with open(paths.spec, "a") as file:
        file.write(
            '\n[[disks]]\nimage = "disks/cd.iso"\nformat = "raw"\nmedia = "cdrom"\nbus = "sata"\n'
        )
    start(context, "src")
    fork(context, "src", ["new"])
    new = context.home.vm("new")
    assert load_spec(new).disks[1].image.startswith(context.home.states)
    before = contents(image_of(context, "new"))
    with pytest.raises(WrongState, match="cannot be replaced while it runs"):
        keep(context, "new")
    snapshot(context, "new", "one")
    with pytest.raises(WrongState, match="another state has"):
        keep(context, "new:one")
    remove_snapshot(context, "new", "one")
    stop(context, "new", force=True)
    keep(context, "new")
    remove(context, "src", force=True)
    assert states.state_ids(context.home) == []
    disk = load_spec(new).disks[1]
    assert (Path(new.root, disk.image).read_bytes(), disk.media) == (b"cd" * 4096, "cdrom")
    assert contents(image_of(context, "new")) == before
    start(context, "new")
    require_running(context, "new")
    require_clean(context)


def test_an_image_that_the_description_left_out_is_not_lost(context):
    make(context)
    snapshot(context, "src", "one")
    stop(context, "src", force=True)
    paths = context.home.vm("src")
    before = contents(image_of(context))
    text = Path(paths.spec).read_text()
    spec = toml.load(text)
    Path(paths.spec).write_text(text[: text.index("[[disks]]")])
    assert keep(context, "src").disks == ("disk0.qcow2",)
    remove_snapshot(context, "src", "one")
    assert states.state_ids(context.home) == []
    Path(paths.spec).write_text(toml.dump(spec))
    start(context, "src")
    assert contents(image_of(context)) == before
    require_clean(context)


@pytest.mark.needs_root
def test_a_full_disk_leaves_all_as_it_was(small, monkeypatch):
    context = Context(home_at(str(small[0] / "wirt")))
    os.mkdir(context.home.root, 0o711)
    try:
        make(context)
        snapshot(context, "src", "one")
        qemu_io(context, "src", "write -P 9 0 3M")
        qemu_io(context, "src", "flush")
        two = snapshot(context, "src", "two").state
        before = contents(image_of(context))
        with pytest.raises(NoSpace, match="would be written"):
            keep(context, "src", alone=True)
        monkeypatch.setattr(module, "_KEPT_FREE", -(1 << 40))
        ballast = small[0] / "ballast"
        facts = os.statvfs(small[0])
        ballast.write_bytes(bytes(facts.f_bavail * facts.f_frsize - (1 << 20)))
        with pytest.raises(ImageNoSpace):
            keep(context, "src:two")
        require_nothing_left(context.home.state(two).root)
        with pytest.raises(NoSpace):
            keep(context, "src")
        require_running(context)
        ballast.unlink()
        assert jobs(context) == []
        assert contents(image_of(context)) == before
        stop(context, "src", force=True)
        facts = os.statvfs(small[0])
        ballast.write_bytes(bytes(facts.f_bavail * facts.f_frsize - (1 << 20)))
        with pytest.raises(ImageNoSpace):
            keep(context, "src")
        require_nothing_left(context.home.vm("src").disks)
        assert contents(image_of(context)) == before
        ballast.unlink()
        start(context, "src")
        keep(context, "src")
        assert contents(image_of(context)) == before
        require_clean(context)
    finally:
        for name in machine_names(context.home):
            remove(context, name, force=True)
