"""Machines with a TPM: swtpm lives and dies with QEMU, and forks have TPMs of their own."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time

import pytest

from tests.vm.conftest import Late, scratch_home
from tests.vm.test_fork_faults import kill_at
from wirt.errors import MissingDependency, QemuError, WrongState
from wirt.host.holders import processes_with
from wirt.host.process import find_program
from wirt.host.process_id import ProcessId
from wirt.store.record import read_record
from wirt.vm import state
from wirt.vm.context import Context
from wirt.vm.create import Wish, create
from wirt.vm.export import export
from wirt.vm.forking.fork import fork
from wirt.vm.listing import list_machines
from wirt.vm.remove import remove, rename
from wirt.vm.restore import restore
from wirt.vm.snapshot import snapshot
from wirt.vm.source import DiskFile
from wirt.vm.start import start
from wirt.vm.stop import stop

pytestmark = [
    pytest.mark.needs_qemu,
    pytest.mark.needs_tool("swtpm"),
    pytest.mark.xdist_group("tpm"),
]

INDEX = 0x01500001
POINTS = (
    "second-begun", "saved", "loaded", "decided", "first-ended", "tpm-moved", "child-begun",
    "child-loaded",
)  # fmt: skip


def empty(context, name, **settings):
    """Make a machine that has no guest, only a firmware."""
    tree = {"memory": "64M", "displays": [], "disks": [], "channels": [], **settings}
    create(context, name, None, Wish(settings=tree))
    return context.home.vm(name)


def tpm_of(paths):
    return read_record(paths.record).run.tpm


def is_gone(process):
    """True if the kernel has ended the process, whoever was to do it."""
    return process.wait(60)


def firmware_measured(paths):
    """Wait until the TPM has kept something: the firmware has started it."""
    kept = os.path.join(paths.tpm, "tpm2-00.permall")
    deadline = time.monotonic() + 300
    while not os.path.exists(kept):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return kept


@pytest.mark.parametrize("version", ["2.0", "1.2"])
def test_swtpm_lives_as_long_as_qemu(context, version):
    paths = empty(context, "one", tpm={"version": version})
    start(context, "one")
    first = tpm_of(paths)
    assert first.alive()
    argument = "tpm-crb" if version == "2.0" else "tpm-tis"
    assert argument in " ".join(read_record(paths.record).run.argv)
    stop(context, "one", force=True)
    assert not first.alive()
    rename(context, "one", "two")
    paths = context.home.vm("two")
    start(context, "two")
    second = tpm_of(paths)
    qemu = read_record(paths.record).run.process
    qemu.kill()
    assert is_gone(qemu)
    assert is_gone(second)
    start(context, "two")
    third = tpm_of(paths)
    remove(context, "two", force=True)
    assert not third.alive()


def test_swtpm_runs_as_the_machine_does_and_holds_nothing_of_it(context):
    paths = empty(context, "one", tpm={"version": "2.0"})
    start(context, "one")
    run = read_record(paths.record).run
    with open(f"/proc/{run.pid}/status") as qemu, open(f"/proc/{run.tpm_pid}/status") as tpm:
        ids = [
            [line for line in file if line.startswith(("Uid", "Gid", "Groups", "CapEff"))]
            for file in (qemu, tpm)
        ]
    assert ids[0] == ids[1]
    for kept in (paths.run_lock, paths.lock):
        assert run.tpm not in processes_with(kept)
    assert os.readlink(f"/proc/{run.tpm_pid}/cwd") == paths.tpm


def test_a_lost_tpm_is_said_and_the_next_start_has_one(context):
    paths = empty(context, "one", tpm={"version": "2.0"})
    start(context, "one")
    tpm_of(paths).kill()
    assert is_gone(tpm_of(paths))
    found = state.look(paths)
    assert (found.status, found.note) == ("running", state.TPM_LOST)
    with pytest.raises(WrongState, match="its TPM has ended") as caught:
        fork(context, "one", ["two"])
    assert caught.value.hint == "wirt restart one"
    stop(context, "one", force=True)
    start(context, "one")
    assert tpm_of(paths).alive()
    assert state.look(paths).note == ""


def test_a_damaged_tpm_is_refused_in_its_own_words(context):
    paths = empty(context, "one", tpm={"version": "2.0"})
    start(context, "one")
    kept = firmware_measured(paths)
    stop(context, "one", force=True)
    with open(kept, "wb") as file:
        file.write(b"no TPM ever wrote this")
    with pytest.raises(QemuError):
        start(context, "one")
    assert state.look(paths).status == "stopped"
    os.unlink(kept)
    start(context, "one")


def test_a_host_without_swtpm_is_told_its_package(context, monkeypatch, tmp_path):
    paths = empty(context, "one", tpm={"version": "2.0"})
    for program in ("qemu-system-x86_64", "setpriv"):
        (tmp_path / program).symlink_to(find_program(program))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependency) as caught:
        start(context, "one")
    assert caught.value.hint == "apt install swtpm"
    assert state.look(paths).status == "stopped"


def test_an_exported_line_says_how_its_tpm_is_started(context):
    paths = empty(context, "one", tpm={"version": "2.0"})
    said = []
    line = export(Context(context.home, say=said.append), "one", "kvm")
    assert f"backend=socket,id=tpm-channel,path={paths.socket('tpm')}" in line
    assert "swtpm socket --tpm2" in said[0]
    assert f"dir={paths.tpm} " in said[0]
    assert f"path={paths.socket('tpm')} " in said[0]


def test_a_killed_start_leaves_no_tpm(context, cli):
    paths = empty(context, "one", tpm={"version": "2.0"})
    process = cli.start("start", "one", "--paused")
    deadline = time.monotonic() + 120
    while not (left := tpms_in(context)):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.wait()
    start(context, "one")
    assert tpm_of(paths).alive()
    for one in left:
        assert one == tpm_of(paths) or is_gone(one)


def test_a_tpm_that_begins_after_its_qemu_ended_ends_at_once(context, cli):
    """The kernel has nothing to tell it: it must see by itself that it came too late."""
    empty(context, "one", tpm={"version": "2.0"})
    late = Late(cli, "swtpm")
    process = cli.start("start", "one")
    tpm, qemu = late.await_both()
    process.kill()
    process.wait()
    qemu.kill()
    try:
        assert is_gone(tpm)
    finally:
        tpm.kill()


def test_wirt_killed_during_a_fork_leaves_one_tpm(context):
    paths = empty(context, "src", tpm={"version": "2.0"}, accelerator="tcg")
    start(context, "src")
    for turn, point in enumerate(POINTS):
        assert kill_at(context, point, "fork", "src", f"fork{turn}")[0] == -9, point
        found = state.look(paths)
        assert (found.status, found.note) == ("running", ""), point
        assert [row.name for row in list_machines(context)] == ["src"], point
        assert not os.path.exists(paths.next_tpm), point
        for module in tpms_in(context):
            assert module == found.record.run.tpm or is_gone(module), point
        assert found.record.run.tpm.alive(), point
        stop(context, "src", force=True)
        start(context, "src")  # on memory that can be handed over again
    remove(context, "src", force=True)
    assert tpms_in(context) == []


def tpms_in(context):
    """The TPMs of a home's machines."""
    found = []
    for one in swtpms():
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{one.pid}/cwd").startswith(context.home.root):
                found.append(one)
    return found


def swtpms():
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{entry}/cmdline", "rb") as file:
            process = ProcessId.of(int(entry))
            if process is not None and file.read().split(b"\0")[0].endswith(b"/swtpm"):
                yield process


class Guest:
    """The shell of a guest on a disk of its own, and its TPM."""

    def __init__(self, guests, context, name, *, booted=True):
        self.tpm2 = guests["tpm2"]
        self.shell = guests["rescue"].RescueShell(guests["tiny"].console(context.home.vm(name)))
        if not booted:
            self.shell.await_prompt()

    def send(self, command):
        return self.shell(self.tpm2.shell_line(command))

    def keep(self, data):
        self.tpm2.answer(self.send(self.tpm2.write(INDEX, data)))

    @property
    def kept(self):
        return self.tpm2.stored(self.send(self.tpm2.read(INDEX, 8)))

    def extend(self, word):
        digest = hashlib.sha256(word).digest()
        self.tpm2.answer(self.send(self.tpm2.extend(16, digest)))

    @property
    def pcr(self):
        return self.tpm2.pcr_of(self.send(self.tpm2.read_pcr(16)))


@pytest.fixture(scope="module")
def tiny_context():
    with scratch_home() as made:
        yield made


class Source(Guest):
    """The machine ``src``; a fork cuts its console, so each test connects to it anew."""

    def __init__(self, guests, context):
        self._guests, self._context = guests, context
        super().__init__(guests, context, "src", booted=False)

    def again(self, *, booted=True):
        self.shell.close()
        super().__init__(self._guests, self._context, "src", booted=booted)
        return self


@pytest.fixture(scope="module")
def source(tiny_context, shell_disk, guests):
    """A guest that has kept a word in its TPM and extended a register."""
    disk = DiskFile(str(shell_disk), "raw", shell_disk.stat().st_size)
    settings = {"memory": "256M", "tpm": {"version": "2.0"}, "displays": [], "channels": []}
    create(tiny_context, "src", disk, Wish(settings=settings))
    start(tiny_context, "src")
    guest, tpm2 = Source(guests, tiny_context), guests["tpm2"]
    try:
        tpm2.answer(guest.send(tpm2.define(INDEX, 8)))
        guest.extend(b"before the fork")
        yield guest
    finally:
        guest.shell.close()


@pytest.mark.needs_guest
@pytest.mark.parametrize("keep_process", [False, True], ids=["freeze", "stream"])
def test_a_fork_has_the_tpm_as_it_was_and_for_itself(source, tiny_context, guests, keep_process):
    source.keep(b"original")
    was = source.pcr
    made = fork(tiny_context, "src", ["one", "two"], keep_process=keep_process)
    assert made.method == ("stream" if keep_process else "freeze")
    assert all("keys of the TPM" in one.identity.unchanged for one in made.forks)
    one, two = (Guest(guests, tiny_context, name) for name in ("one", "two"))
    source.again()
    everyone = {"src": source, "one": one, "two": two}
    for name, guest in everyone.items():
        assert (guest.kept, guest.pcr) == (b"original", was), name
    for name, guest in everyone.items():
        guest.keep(name.encode().ljust(8))
        guest.extend(name.encode())
    assert [guest.kept.decode().strip() for guest in everyone.values()] == list(everyone)
    assert len({guest.pcr for guest in everyone.values()} | {was}) == 4
    modules = [tpm_of(tiny_context.home.vm(name)) for name in everyone]
    assert len(set(modules)) == 3
    assert all(module.alive() for module in modules)
    for guest in (one, two):
        guest.shell.close()
    for name in ("one", "two"):
        remove(tiny_context, name, force=True)
    assert [module.alive() for module in modules] == [True, False, False]


@pytest.mark.needs_guest
def test_a_fork_of_a_fork_outlives_its_own_restart(source, tiny_context, guests):
    source.keep(b"original")
    fork(tiny_context, "src", ["one"])
    source.again()
    fork(tiny_context, "one", ["deep"])
    remove(tiny_context, "one", force=True)
    deep = Guest(guests, tiny_context, "deep")
    deep.keep(b"deepened")
    deep.shell.close()
    stop(tiny_context, "deep", force=True)
    start(tiny_context, "deep")
    deep = Guest(guests, tiny_context, "deep", booted=False)
    assert deep.kept == b"deepened"
    deep.shell.close()
    assert source.kept == b"original"
    remove(tiny_context, "deep", force=True)


@pytest.mark.needs_guest
def test_a_restore_brings_the_tpm_back(source, tiny_context, guests):
    source.keep(b"original")
    was = source.pcr
    snapshot(tiny_context, "src", "live")
    source.again()
    source.keep(b"spoilt!!")
    source.extend(b"spoilt")
    before = tpm_of(tiny_context.home.vm("src"))
    restore(tiny_context, "src", "live", discard=True)
    assert not before.alive()
    source.again()
    assert (source.kept, source.pcr) == (b"original", was)
    source.keep(b"still ok")
    stop(tiny_context, "src", force=True)
    snapshot(tiny_context, "src", "down")
    start(tiny_context, "src")
    source.again(booted=False)
    assert source.kept == b"still ok"
    source.keep(b"spoilt!!")
    restore(tiny_context, "src", "down", discard=True)
    restore(tiny_context, "src", "down", to="copy")
    start(tiny_context, "copy")
    copy = Guest(guests, tiny_context, "copy", booted=False)
    assert copy.kept == b"still ok"
    copy.shell.close()
    remove(tiny_context, "copy", force=True)
    start(tiny_context, "src")
    source.again(booted=False)
    assert source.kept == b"still ok"
