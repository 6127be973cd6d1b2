"""Frozen machines on disk: made whole or not at all, removed when nobody needs them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from wirt.errors import HostError, NotFound, WrongState
from wirt.spec.machine import Machine
from wirt.store import layout, states
from wirt.store.atomic import write_file
from wirt.store.machines import new_machine, prepare, remove_machine
from wirt.store.record import Record, write_record
from wirt.store.record_file import VERSION
from wirt.store.states import Manifest, QemuFacts, collect, find_state, new_state, publish


@pytest.fixture
def home(tmp_path):
    made = layout.Home(str(tmp_path / "home"), str(tmp_path / "run"), str(tmp_path / "memory"))
    prepare(made)
    return made


def manifest(**more):
    return Manifest(
        created=time.time(), source="web", machine=Machine(name="web"), accelerator="tcg",
        cpu="qemu64", qemu=QemuFacts((7, 2, 0), "", "/usr/bin/qemu", "00"), argv=("qemu",),
        memory=1 << 30, clock=time.time(), method="freeze", **more,
    )  # fmt: skip


def make(home, **more):
    with new_state(home) as paths:
        states.make_memory_directory(home)
        write_file(paths.memory, b"memory")
        return publish(paths, manifest(**more))


def fill_half(paths, seen):
    write_file(paths.memory, b"memory")
    seen.append(paths.memory)
    write_file(os.path.join(paths.root, "no", "such"), b"")


def machine_on(home, name, ident):
    with new_machine(home, name) as paths:
        write_record(paths.record, Record(state=ident))
    return home.vm(name)


def test_a_state_is_read_back_as_it_was_published(home):
    state = make(home)
    assert find_state(home, state.id) == state
    assert states.states(home) == [state]
    assert Path(state.memory).read_bytes() == b"memory"


def test_a_block_that_fails_leaves_no_state_and_no_memory(home):
    states.make_memory_directory(home)
    seen = []
    with pytest.raises(HostError), new_state(home) as paths:
        fill_half(paths, seen)
    assert states.state_ids(home) == []
    assert seen
    assert not os.path.exists(seen[0])


def test_what_a_killed_maker_left_is_swept_and_what_a_living_one_makes_is_not(home):
    code = (
        "import os, sys\nfrom wirt.store import layout, states\n"
        "home = layout.Home(*sys.argv[1:])\n"
        "with states.new_state(home) as paths:\n"
        "    os.utime(paths.root, (0, 0))\n    print(paths.id, flush=True)\n    input()\n"
    )
    words = [sys.executable, "-c", code, home.root, home.runtime_base, home.memory_base]
    maker = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    ident = maker.stdout.readline().decode().strip()
    states.sweep_states(home)
    assert states.state_ids(home) == [ident]
    maker.kill()
    maker.communicate()
    states.sweep_states(home)
    assert states.state_ids(home) == []


def test_a_state_goes_with_the_last_who_stands_on_it_and_takes_its_parent_along(home):
    below = make(home)
    above = make(home, parent=below.id)
    one, two = (machine_on(home, name, above.id) for name in ("one", "two"))
    remove_machine(home, one)
    assert not collect(home, above.id)
    assert states.users(home, below.id) == [f"state {above.id}"]
    assert not collect(home, below.id)
    remove_machine(home, two)
    assert collect(home, above.id)
    assert states.state_ids(home) == []
    assert os.listdir(home.memory) == ["home"]


def test_a_hold_keeps_a_state_and_a_user_in_the_making_does_too(home):
    state = make(home)
    states.hold(state, "template-debian:12")
    assert not collect(home, state.id)
    states.release(state, "template-debian:12")
    with states.using(home, state.id):
        assert not collect(home, state.id)
    assert collect(home, state.id)
    with pytest.raises(NotFound), states.using(home, state.id):
        pass


def test_the_memory_goes_when_nothing_holds_the_state(home):
    state = make(home)
    machine_on(home, "one", state.id)
    states.hold(state, states.process_label())
    states.hold(state, "process.4194303.1")
    states.drop_memory(home, state.id)
    assert state.memory
    assert states.holds(state.paths) == [states.process_label()]
    states.release(state, states.process_label())
    with states.using(home, state.id):
        states.drop_memory(home, state.id)
    assert state.memory
    states.sweep_states(home)
    with pytest.raises(WrongState, match="nothing held it"):
        _ = state.memory
    assert find_state(home, state.id) == state


def test_a_damaged_record_or_manifest_counts_as_a_user(home):
    state = make(home)
    paths = machine_on(home, "odd", "")
    write_file(paths.record, b"{")
    assert states.users(home, state.id) == ["odd"]
    assert not collect(home, state.id)
    other = make(home)
    write_file(other.paths.manifest, b"[]")
    with pytest.raises(HostError):
        find_state(home, other.id)
    assert not collect(home, other.id)
    assert [one.id for one in states.states(home)] == [state.id]


def test_a_state_of_a_newer_wirt_is_refused(home):
    state = make(home)
    newer = msgspec.structs.replace(state.manifest, version=VERSION + 1)
    write_file(state.paths.manifest, msgspec.json.encode(newer))
    with pytest.raises(HostError, match="newer"):
        find_state(home, state.id)


def test_memory_of_nobody_is_swept_also_of_homes_that_are_gone(home, tmp_path):
    state = make(home)
    machine = machine_on(home, "one", "")
    write_file(machine.memory, b"")
    stray = os.path.join(home.memory, "vm-abc.mem")
    write_file(stray, b"")
    states.hold(state, "snapshot-one")
    states.sweep_states(home)
    assert sorted(os.listdir(home.memory)) == sorted(
        ["home", os.path.basename(machine.memory), os.path.basename(state.memory)]
    )
    gone = os.path.join(home.memory_base, "1-2")
    os.mkdir(gone)
    os.symlink(str(tmp_path / "nowhere"), os.path.join(gone, "home"))
    other = layout.Home(str(tmp_path / "other"), home.runtime_base, home.memory_base)
    os.mkdir(other.root)
    states.make_memory_directory(other)
    assert not os.path.exists(gone)
    assert os.path.exists(home.memory)


def test_lost_memory_is_said(home):
    state = make(home)
    os.unlink(state.paths.memory)
    with pytest.raises(WrongState, match="restarted"):
        _ = state.memory


def test_a_home_that_got_the_inode_of_a_deleted_one_keeps_its_memory(home, tmp_path):
    directory = states.make_memory_directory(home)
    os.unlink(os.path.join(directory, "home"))
    os.symlink(tmp_path / "deleted", os.path.join(directory, "home"))
    states.make_memory_directory(home)
    write_file(os.path.join(directory, "vm-1.mem"), b"memory")
    other = layout.Home(str(tmp_path / "other"), str(tmp_path / "run"), home.memory_base)
    prepare(other)
    states.make_memory_directory(other)
    assert Path(directory, "vm-1.mem").read_bytes() == b"memory"
    assert os.readlink(os.path.join(directory, "home")) == home.root


def test_what_an_unpublished_state_may_stand_on_is_kept(home):
    below = make(home)
    with new_state(home) as paths:
        machine = machine_on(home, "one", paths.id)
        states.sweep_states(home)
        assert not collect(home, below.id)
        publish(paths, manifest(parent=below.id))
    states.sweep_states(home)
    assert len(states.state_ids(home)) == 2
    remove_machine(home, machine)
    states.sweep_states(home)
    assert states.state_ids(home) == []
