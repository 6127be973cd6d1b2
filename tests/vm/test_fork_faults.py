"""Forks that are killed, run out of space or are refused: the source lives, nothing is left.

The machines have no guest: their firmware runs, which is enough to be frozen.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import pytest

from wirt.errors import (
    AlreadyExists,
    HostError,
    MissingDependency,
    NoSpace,
    QemuError,
    UsageError,
    WirtError,
    WrongState,
)
from wirt.host.holders import processes_with
from wirt.spec.nic import Tap
from wirt.store import states
from wirt.store.atomic import write_file
from wirt.store.layout import Home, home_at
from wirt.store.machines import machine_names
from wirt.store.record import read_record
from wirt.vm import state
from wirt.vm.context import Context
from wirt.vm.create import Wish, create
from wirt.vm.forking import fork as forking
from wirt.vm.forking import stream
from wirt.vm.forking.fork import fork, names_for, spawn_many
from wirt.vm.forking.freeze import freeze
from wirt.vm.forking.spawn import Wish as Birth
from wirt.vm.forking.spawn import spawn_from
from wirt.vm.listing import list_machines
from wirt.vm.remove import remove
from wirt.vm.restore import restore
from wirt.vm.snapshot import list_snapshots, snapshot
from wirt.vm.start import start
from wirt.vm.stop import pause, resume, stop

pytestmark = [pytest.mark.needs_qemu]

SETTINGS = {"memory": "64M", "accelerator": "tcg", "displays": [], "nics": []}

FREEZE = (
    "disks-linked", "journaled", "take-name", "second-begun", "stopped", "saved", "loaded",
    "decided", "first-ended", "tpm-moved", "sockets-moved", "handed-over",
)  # fmt: skip
STREAM = (
    "disks-linked", "journaled", "take-name", "nodes-added", "stopped", "snapshot", "saved",
    "handed-over",
)  # fmt: skip
AFTER = {"first-ended", "tpm-moved", "sockets-moved", "handed-over"}
"""The forks are made all the same when the source's QEMU is killed here."""
BIRTH = ("child-filled", "child-begun", "child-loaded", "child-published", "child-runs")


def make(context, name="src", **more):
    create(context, name, None, Wish(settings={**SETTINGS, **more}, disk_size=8 << 20))
    start(context, name)


def kill_at(context, point, *words):
    """Run ``wirt WORDS`` that is killed, or kills, at a point; return its exit code."""
    env = {**os.environ, "WIRT_HOME": context.home.root, "WIRT_FAILPOINT": point}
    done = subprocess.run(
        [sys.executable, "-m", "wirt", *words],
        env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=600, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr.decode()


def opened_by(pid, look=os.stat):
    """Look at what a process has open; a running one closes files meanwhile."""
    fds = f"/proc/{pid}/fd"
    for fd in os.listdir(fds):
        with contextlib.suppress(FileNotFoundError):
            yield look(os.path.join(fds, fd))


def require_running(context, name="src"):
    """The machine runs, in one QEMU, on an image of its own that is sound."""
    paths = context.home.vm(name)
    found = state.look(paths)
    assert found.status == "running", found
    assert found.record.handover is None
    assert [p.pid for p in processes_with(paths.run_lock)] == [found.record.run.pid]
    image = os.path.join(paths.disks, "disk0.qcow2")
    assert any(os.path.samestat(os.stat(image), one) for one in opened_by(found.record.run.pid))
    for known in states.states(context.home):
        for disk in known.manifest.disks:
            assert not os.path.samefile(image, os.path.join(known.paths.root, disk.file))
    assert not [name for name in os.listdir(paths.disks) if name.startswith(".")]


def memory_files(context):
    if not os.path.isdir(context.home.memory):
        return []
    return sorted(set(os.listdir(context.home.memory)) - {"home"})


def processes_of(root):
    """Return the processes that have a file below ``root`` open, or name one in their line."""
    found, place = {}, f"{root}/".encode()
    for pid in (entry for entry in os.listdir("/proc") if entry.isdigit()):
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            numbers = os.listdir(f"/proc/{pid}/fd")
            links = [os.fsencode(os.readlink(f"/proc/{pid}/fd/{number}")) for number in numbers]
            if int(pid) != os.getpid() and any(place in word for word in (line, *links)):
                found[int(pid)] = line.replace(b"\0", b" ").decode(errors="replace")[:200]
    return found


def require_no_process(root):
    """QEMU is gone at once; its keeper sees that, and ends by itself."""
    deadline = time.monotonic() + 60
    while left := processes_of(root):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def require_clean(context):
    """When the machines are gone, nothing is left of them."""
    for name in machine_names(context.home):
        remove(context, name, force=True)
    require_no_process(context.home.root)
    old = [entry.path for entry in os.scandir(context.home.vms)]
    for path in old:
        os.utime(path, (0, 0))
    create(context, "x", None, Wish(settings=SETTINGS, disk_size=1 << 20))  # this sweeps
    remove(context, "x")
    assert os.listdir(context.home.vms) == []
    states.sweep_states(context.home)
    for name in states.state_ids(context.home):
        os.utime(context.home.state(name).root, (0, 0))
    states.sweep_states(context.home)
    assert states.state_ids(context.home) == []
    assert memory_files(context) == []


def test_wirt_killed_at_any_step_of_a_fork_by_handing_over(context):
    make(context)
    for turn, point in enumerate((*FREEZE, *BIRTH)):
        name = f"fork{turn}"
        assert kill_at(context, point, "fork", "src", name)[0] == -9, point
        require_running(context)
        assert [row.name for row in list_machines(context)] == ["src"]
        stop(context, "src", force=True)
        start(context, "src")  # on memory that can be handed over again
    require_clean(context)


def test_wirt_killed_at_any_step_of_a_fork_by_copying(context):
    make(context, forkable="off")
    for point in STREAM:
        assert kill_at(context, point, "fork", "src", "one")[0] == -9, point
        require_running(context)
    fork(context, "src", ["one"])
    require_running(context)
    require_running(context, "one")
    require_clean(context)


@pytest.mark.parametrize(("points", "settings"), [(FREEZE, {}), (STREAM, {"forkable": "off"})])
def test_qemu_killed_at_any_step_leaves_a_machine_that_starts(context, points, settings):
    make(context, **settings)
    lock = context.home.vm("src").run_lock
    for point in points:
        code, said = kill_at(context, f"{point}={lock}", "fork", "src", "one")
        assert "Traceback" not in said, (point, said)
        if "one" in machine_names(context.home):
            remove(context, "one", force=True)
        found = state.look(context.home.vm("src"))
        assert code > 0 or point in AFTER, point
        assert found.status == "stopped", (point, found)
        start(context, "src")
        require_running(context)
    require_clean(context)


@pytest.mark.parametrize("point", ["stopped", "saved", "loaded"])
def test_a_second_qemu_that_is_killed_leaves_the_first_running(context, point):
    """It is the one that has the overlay open, which has the image's name already."""
    make(context)
    image = os.path.join(context.home.vm("src").disks, "disk0.qcow2")
    before = read_record(context.home.vm("src").record).run.process
    code, said = kill_at(context, f"{point}={image}", "fork", "src", "one")
    assert code > 0, said
    assert "Traceback" not in said, said
    assert "QEMU" in said, said
    require_running(context)
    assert read_record(context.home.vm("src").record).run.process == before
    assert machine_names(context.home) == ["src"]
    fork(context, "src", ["one"])
    require_running(context, "one")
    require_clean(context)


def test_a_fork_whose_qemu_is_killed_at_any_step(context):
    """Before it runs, there is no fork and the reason is said; after that, it is down."""
    make(context)
    for turn, point in enumerate(("child-begun", "child-loaded", "child-runs")):
        name = f"fork{turn}"
        lock = context.home.vm(name).run_lock
        code, said = kill_at(context, f"{point}={lock}", "fork", "src", name)
        assert "Traceback" not in said, (point, said)
        require_running(context)
        if point == "child-runs":
            assert state.look(context.home.vm(name)).status == "stopped"
            start(context, name)
            require_running(context, name)
            remove(context, name, force=True)
        else:
            assert code > 0, point
            assert "QEMU" in said, (point, said)
        assert machine_names(context.home) == ["src"], point
    require_clean(context)


def test_a_paused_machine_stays_paused(context):
    make(context)
    pause(context, "src")
    fork(context, "src", ["one"])
    assert state.look(context.home.vm("src")).status == "paused"
    assert state.look(context.home.vm("one")).status == "running"
    fork(context, "src", ["two"], wish=Birth(paused=True))
    assert state.look(context.home.vm("src")).status == "paused"
    assert state.look(context.home.vm("two")).status == "paused"
    resume(context, "two")
    require_running(context, "two")
    assert read_record(context.home.vm("two").record).identity_due is None
    require_clean(context)


@pytest.mark.needs_qemu_img
def test_a_machine_survives_its_forks_and_they_survive_it(context):
    make(context)
    fork(context, "src", ["one", "two"])
    result = fork(context, "one", ["deep"])
    assert result.method == "stream"
    remove(context, "src", force=True)
    for name in ("one", "two", "deep"):
        require_running(context, name)
        stop(context, name, force=True)
        start(context, name)
        require_running(context, name)
        stop(context, name, force=True)
        image = os.path.join(context.home.vm(name).disks, "disk0.qcow2")
        subprocess.run(["qemu-img", "check", image], check=True, capture_output=True)
    require_clean(context)


def test_what_cannot_be_forked_is_refused_before_anything_is_touched(context, tmp_path):
    odd = {"usb": {"devices": [{"kind": "wacom-tablet"}]}}
    make(context, **odd)
    own = tmp_path / "own.raw"
    own.write_bytes(bytes(1 << 20))
    context_machine = context.home.vm("src")
    before = read_record(context_machine.record)
    with pytest.raises(WrongState, match=r"usb.devices\[0\] is a tablet") as caught:
        freeze(context, "src")
    assert "unplug it" in caught.value.hint
    assert read_record(context_machine.record) == before
    assert states.state_ids(context.home) == []
    require_running(context)
    create(context, "down", None, Wish(settings=SETTINGS, disk_size=1 << 20))
    with pytest.raises(WrongState, match="not running"):
        freeze(context, "down")
    require_clean(context)


def test_another_qemu_or_cpu_is_refused_and_a_broken_state_does_not_hang(context):
    make(context)
    frozen = freeze(context, "src")
    manifest = frozen.state.manifest

    def rewritten(**changes):
        changed = msgspec.structs.replace(manifest, **changes)
        write_file(frozen.state.paths.manifest, msgspec.json.encode(changed))
        return states.find_state(context.home, frozen.state.id)

    with pytest.raises(HostError, match="saved on the CPU Nehalem"):
        spawn_from(context, rewritten(cpu="Nehalem"), "one")
    other = msgspec.structs.replace(manifest.qemu, sha256="00")
    with pytest.raises(MissingDependency, match="another QEMU"):
        spawn_from(context, rewritten(qemu=other), "one")
    good = rewritten()
    devices = Path(good.paths.devices)
    whole = devices.read_bytes()
    devices.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(QemuError):
        spawn_from(context, good, "one")
    devices.write_bytes(b"")
    with pytest.raises(QemuError):
        spawn_from(context, good, "one")
    devices.write_bytes(whole)
    assert machine_names(context.home) == ["src"]
    assert spawn_from(context, good, "one").name == "one"
    states.release(good, states.process_label())
    require_clean(context)


def test_names_are_chosen_and_checked_before_the_source_is_touched(context):
    make(context)
    assert names_for(context, "src", 2) == ["src-1", "src-2"]
    for wrong in (["src"], ["a", "a"]):
        with pytest.raises(AlreadyExists):
            fork(context, "src", wrong)
    with pytest.raises(UsageError):
        names_for(context, "src", 0)
    assert states.state_ids(context.home) == []
    fork(context, "src", names_for(context, "src", 2))
    assert names_for(context, "src", 1) == ["src-3"]
    require_clean(context)


def test_all_or_nothing_removes_the_others_and_without_it_they_stay(context, monkeypatch):
    make(context)
    real = spawn_from

    def sometimes(context, state, name, wish):
        if name == "bad":
            raise HostError("no luck")
        return real(context, state, name, wish)

    monkeypatch.setattr(forking, "spawn_from", sometimes)
    with pytest.raises(HostError, match="no luck"):
        fork(context, "src", ["a", "bad"], all_or_nothing=True)
    assert machine_names(context.home) == ["src"]
    result = fork(context, "src", ["a", "bad"])
    assert [made.name for made in result.forks] == ["a"]
    assert result.failed == (("bad", "no luck"),)
    require_running(context)
    require_clean(context)


def test_many_forks_share_one_state_whose_files_never_change(context):
    make(context)
    frozen = freeze(context, "src")
    files = [Path(frozen.state.paths.root, name) for name in os.listdir(frozen.state.paths.root)]
    files = [path for path in files if path.is_file()] + [Path(frozen.state.memory)]
    before = [path.read_bytes() for path in files]
    made, failed = spawn_many(context, frozen.state, [f"f{n}" for n in range(8)])
    assert (len(made), failed) == (8, [])
    for name in ("f0", "f3"):
        stop(context, name, force=True)
        start(context, name)
    assert [path.read_bytes() for path in files] == before
    states.release(frozen.state, states.process_label())
    require_clean(context)


def traces(context):
    """Return all that a machine could leave, but for what it has outside its home."""
    home = context.home
    files = {
        os.path.join(directory, name)
        for base in (home.root, home.memory)
        for directory, directories, names in os.walk(base)
        for name in (*directories, *names)
    }
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "processes": set(processes_of(home.root)),
        "files": files,
    }


def nothing_new(after, before):
    """Return whether nothing came; what an earlier step left to its keeper may be gone by now."""
    return all(after[key] <= before[key] for key in before)


def rss():
    """Return what this process has resident."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_cycles_of_fork_and_remove_leak_nothing(context):
    """As root each fork has a TAP, of one name: a second one while the first is left fails."""
    tap = f"wt{os.getpid()}"
    can_tap = os.geteuid() == 0 and os.path.exists("/dev/net/tun")
    wish = Birth(networks={0: Tap(interface=tap, vhost="off")} if can_tap else {})
    make(context, nics=[{"backend": {"type": "none"}}])
    frozen = freeze(context, "src")
    spawn_from(context, frozen.state, "warm", wish)
    assert os.path.exists(f"/sys/class/net/{tap}") is can_tap
    remove(context, "warm", force=True)
    before = traces(context)
    resident = rss()
    for turn in range(int(os.environ.get("WIRT_FORK_CYCLES", "5"))):
        spawn_from(context, frozen.state, f"c{turn}", wish)
        sockets = context.home.vm(f"c{turn}").runtime
        remove(context, f"c{turn}", force=True)
        assert not os.path.exists(sockets)
    deadline = time.monotonic() + 60
    while not nothing_new(after := traces(context), before):
        assert time.monotonic() < deadline, (before, after)
        time.sleep(0.1)
    assert not os.path.exists(f"/sys/class/net/{tap}")
    assert rss() - resident < 16 << 20
    assert machine_names(context.home) == ["src"]
    states.release(frozen.state, states.process_label())
    require_clean(context)


@pytest.fixture
def small():
    """A file system of 48 MiB for a home, and one of 4 MiB."""
    made = []
    for size in (48, 4):
        path = Path(tempfile.mkdtemp(prefix="wirt-small-", dir="/var/tmp"))
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}m,mode=711", "none", path],
                       check=True)  # fmt: skip
        made.append(path)
    try:
        yield made
    finally:
        for path in made:
            subprocess.run(["umount", "-l", path], check=True)
            path.rmdir()


def fill(path):
    """Write until the file system is full."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.mark.needs_root
def test_a_full_disk_in_the_middle_leaves_the_source_alive(small):
    context = Context(home_at(str(small[0] / "wirt")))
    make(context)
    ballast = small[0] / "ballast"
    try:
        for keep in (100 << 10, 400 << 10, 700 << 10):
            facts = os.statvfs(small[0])
            ballast.write_bytes(bytes(facts.f_bavail * facts.f_frsize - keep))
            with pytest.raises(WirtError) as caught:
                fork(context, "src", ["one"])
            assert "space" in str(caught.value).lower(), caught.value
            ballast.unlink()
            require_running(context)
        fork(context, "src", ["one"])
        require_running(context, "one")
        require_clean(context)
    finally:
        for name in machine_names(context.home):
            remove(context, name, force=True)


@pytest.mark.needs_root
def test_a_full_disk_in_the_middle_of_a_snapshot_and_of_a_restore(small):
    """However much is left, it is done, or the machine is as before and the reason is said."""
    context = Context(home_at(str(small[0] / "wirt")))
    ballast = small[0] / "ballast"

    def with_little_left(act, *arguments, **options):
        for keep in (0, 4 << 10, 16 << 10, 100 << 10, 400 << 10):
            fill(ballast)
            os.truncate(ballast, max(0, ballast.stat().st_size - keep))
            said = ""
            try:
                act(context, "src", "one", *arguments, **options)
            except WirtError as error:
                said = str(error)
            ballast.unlink()
            if not said:
                return
            assert "space" in said.lower(), (keep, said)
            require_running(context)
            assert machine_names(context.home) == ["src"]
        act(context, "src", "one", *arguments, **options)

    try:
        make(context)
        with_little_left(snapshot)
        require_running(context)
        assert [row.name for row in list_snapshots(context, "src")] == ["one"]
        with_little_left(restore, discard=True)
        require_running(context)
        with_little_left(restore, to="new")
        require_running(context, "new")
        require_clean(context)
    finally:
        for name in machine_names(context.home):
            remove(context, name, force=True)


@pytest.mark.needs_root
def test_full_memory_in_the_middle_leaves_the_source_alive(small, monkeypatch):
    home = Home(str(small[0] / "wirt"), home_at(str(small[0])).runtime_base, str(small[1]))
    context = Context(home)
    try:
        make(context, balloon=False)
        assert read_record(home.vm("src").record).run.memory == "anonymous"
        monkeypatch.setattr(stream, "room", lambda _home: 1 << 40)
        ballast = Path(small[1], "ballast")
        fill(ballast)
        with pytest.raises(NoSpace):
            fork(context, "src", ["one"])
        require_running(context)
        ballast.unlink()
        fork(context, "src", ["one"])
        require_running(context, "one")
        require_clean(context)
    finally:
        for name in machine_names(home):
            remove(context, name, force=True)
