"""Warm images on disk: a record and a hold, whatever is killed between the two."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.store.test_states import machine_on, make
from wirt.errors import NoSpace, NotFound
from wirt.store import kept_memory, layout, states, templates
from wirt.store.machines import prepare, remove_machine
from wirt.store.states import find_state, hold
from wirt.store.templates import Template, add_template, read_template, remove_template
from wirt.vm.context import Context
from wirt.vm.template import evict

NAME = "0123456789abcdef"


@pytest.fixture
def home(tmp_path):
    made = layout.Home(str(tmp_path / "home"), str(tmp_path / "run"), str(tmp_path / "memory"))
    prepare(made)
    os.mkdir(made.templates, 0o700)
    return made


def template(state, fingerprint=NAME):
    return Template(
        fingerprint=fingerprint, kind="k", image="debian:12", image_id="i", state=state.id,
        created=time.time(), memory=1 << 20, vcpus=1,
    )  # fmt: skip


def test_a_template_is_found_by_the_beginning_of_its_name_and_keeps_its_state(home):
    state = make(home)
    add_template(home, template(state), state)
    assert read_template(home, "0123").state == state.id
    assert not states.collect(home, state.id)
    remove_template(home, NAME)
    assert states.state_ids(home) == []
    with pytest.raises(NotFound):
        read_template(home, "0123")


def test_a_template_that_goes_leaves_the_state_to_machines_that_stand_on_it(home):
    state = make(home)
    add_template(home, template(state), state)
    paths = machine_on(home, "fork", state.id)
    remove_template(home, NAME)
    assert states.state_ids(home) == [state.id]
    remove_machine(home, paths)
    assert states.collect(home, state.id)


def test_a_hold_without_a_record_is_dropped(home):
    """That is what a command leaves that was killed while it made a template."""
    state = make(home)
    hold(state, f"template-{NAME}")
    with templates.making(home, NAME):
        templates.sweep(home)
        assert states.state_ids(home) == [state.id], "somebody is still at it"
    templates.sweep(home)
    assert states.state_ids(home) == []


def test_a_newer_state_under_the_same_name_frees_the_older(home):
    old, new = make(home), make(home)
    add_template(home, template(old), old)
    add_template(home, template(new), new)
    templates.sweep(home)
    assert states.state_ids(home) == [new.id]


def test_a_damaged_record_is_no_template_and_can_be_removed(home):
    state = make(home)
    add_template(home, template(state), state)
    Path(home.template(NAME)).write_bytes(b"{")
    assert templates.templates(home) == []
    remove_template(home, NAME)
    assert states.state_ids(home) == []


def test_the_least_recently_used_make_room(home, monkeypatch):
    monkeypatch.setenv("WIRT_TEMPLATE_BUDGET", "100K")
    names = [f"{number:016x}" for number in range(3)]
    for age, name in enumerate(names):
        state = make(home)
        Path(state.paths.devices).write_bytes(os.urandom(60_000))
        add_template(home, template(state, name), state)
        os.utime(home.template(name), (age, age))
    templates.touch(home, names[0])
    evict(Context(home), keep=names[1])
    assert templates.template_names(home) == names[:2] or templates.template_names(home) == [
        names[1]
    ]
    assert names[2] not in templates.template_names(home)


def test_memory_goes_to_disk_with_its_holes(home):
    state = make(home)
    size, data = 8 << 20, os.urandom(5000)
    with open(state.paths.memory, "wb") as file:
        file.truncate(size)
        file.seek(3 << 20)
        file.write(data)
        file.seek(6 << 20)
        file.write(bytes(1 << 20))
    os.chmod(state.paths.memory, 0o640)
    kept_memory.keep_memory(state)
    kept = Path(state.paths.kept_memory)
    assert not os.path.exists(state.paths.memory)
    assert find_state(home, state.id).memory == str(kept)
    content = kept.read_bytes()
    assert len(content) == size
    assert content[3 << 20 : (3 << 20) + 5000] == data
    assert content.count(0) >= size - 5000
    assert kept.stat().st_blocks * 512 < 1 << 20
    assert kept.stat().st_mode & 0o777 == 0o640


def test_a_full_disk_leaves_the_memory_where_it_was(home, monkeypatch):
    state = make(home)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept_memory.os, "pwrite", full)
    with pytest.raises(NoSpace):
        kept_memory.keep_memory(state)
    assert Path(state.memory).read_bytes() == b"memory"
    assert not any(name.endswith(".tmp") for name in os.listdir(state.paths.root))
