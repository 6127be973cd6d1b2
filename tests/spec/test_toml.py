"""Machine descriptions: what is read, what is refused, and with which words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

from wirt.errors import SpecError, UsageError, WirtError
from wirt.spec import toml
from wirt.spec.assign import assign, parse_key
from wirt.spec.machine import Machine
from wirt.spec.schema import machine_schema
from wirt.spec.settings import settings
from wirt.units import GIB, MIB

WRONG = """\
name = "x"
memroy = "1G"

[cpu]
vcpus = 0

[[disks]]
image = "a.qcow2"
bus = "virto"

[[disks]]
image = "b"
serial = 7

[[nics]]
backend = { type = "usr" }
"""


def test_every_problem_is_reported_with_file_line_and_nearest_word():
    machine, problems = toml.check(WRONG, file="m.toml")
    assert machine is None
    assert [(problem.line, problem.key) for problem in problems] == [
        (2, "memroy"),
        (5, "cpu.vcpus"),
        (9, "disks[0].bus"),
        (13, "disks[1].serial"),
        (16, "nics[0].backend.type"),
    ]
    assert problems[0].hint == "did you mean 'memory'?"
    assert problems[2].hint == "did you mean 'virtio'?"
    assert str(problems[0]).startswith("m.toml:2: memroy:")


def test_load_raises_the_first_problem_and_counts_the_others():
    with pytest.raises(SpecError) as caught:
        toml.load(WRONG, file="m.toml")
    assert caught.value.line == 2
    assert "4 more" in caught.value.hint


def test_text_that_is_no_toml_names_its_line():
    with pytest.raises(SpecError) as caught:
        toml.load('name = "x"\nmemory = = 3\n', file="m.toml")
    assert (caught.value.file, caught.value.line) == ("m.toml", 2)


@pytest.mark.parametrize(
    ("text", "size"),
    [('"512M"', 512 * MIB), ('"1.5G"', GIB * 3 // 2), ("1073741824", GIB), ('"256"', 256 * MIB)],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert toml.load(f'name = "x"\nmemory = {text}\n').memory == size


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('memory = "1X"', "memory"),
        ('memory = "0"', "memory"),
        ("memory = true", "memory"),
        ('uuid = "x"', "uuid"),
        ("[cpu]\nvcpus = 2\nsockets = 3\n", "cpu"),
        ("[cpu]\nvcpus = 4\nmax_vcpus = 2\n", "cpu.max_vcpus"),
        ("[firmware]\nsecure_boot = true", "firmware.secure_boot"),
        ('[tpm]\nmodel = "tpm-tis"', "tpm.model"),
        ('[tpm]\nversion = "1.2"\nmodel = "tpm-crb"', "tpm.model"),
        ('[tpm]\nversion = "2.0"\n[boot]\nkernel = "k"\ninitrd = "i"', "tpm.version"),
        ("tpm = 2.0", "tpm"),
        ('[boot]\ninitrd = "i"', "boot.initrd"),
        ('[[disks]]\nbus = "virtio"', "disks[0].image"),
        ('[[disks]]\nimage = "i"\nmedia = "cdrom"', "disks[0].bus"),
        ('[[disks]]\nimage = "a"\nid = "d"\n[[disks]]\nimage = "b"\nid = "d"', "disks[1].id"),
        ('[[disks]]\nimage = "a\\u0007"', "disks[0].image"),
        ('[[nics]]\nmac = "01:00:00:00:00:01"', "nics[0].mac"),
        ('[[channels]]\nname = "a"\n[[channels]]\nname = "a"', "channels[1].name"),
        ('disks = "x"', "disks"),
        ("cpu = 3", "cpu"),
    ],
)
def test_what_makes_no_machine_is_refused_at_its_key(text, key):
    _, problems = toml.check(f'name = "x"\n{text}\n')
    assert [problem.key for problem in problems] == [key]


def test_a_description_without_a_name_says_so():
    _, problems = toml.check("memory = '1G'\n")
    assert [(problem.key, problem.problem) for problem in problems] == [("name", "is missing")]


FULL = """\
name = "full"
memory = "3G"
sound = ["hda", "pcspk"]
[cpu]
vcpus = 4
sockets = 2
[[disks]]
image = "a b,c.qcow2"
throttle = { bytes_total = "1M" }
geometry = { cylinders = 100, heads = 16, sectors = 63 }
bus = "ide"
[[nics]]
backend = { type = "user", forwards = [{ host_port = 8080, guest_port = 80 }] }
[[displays]]
type = "spice"
listen = "127.0.0.1:5900"
[[serials]]
backend = { type = "tcp", port = 4555, telnet = true }
[usb]
devices = [{ kind = "tablet" }]
[watchdog]
action = "pause"
[qemu]
args = ["-device", "edu,id=\\"x\\""]
"""


def test_what_is_written_is_read_back_equal():
    machine = toml.load(FULL)
    assert toml.load(toml.dump(machine)) == machine


@trials(deadline=None)  # a busy host is no failure
@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_survives_writing_and_reading(description, argument):
    try:
        machine = toml.from_data(
            {"name": "x", "description": description, "qemu": {"args": [argument]}}
        )
    except SpecError:
        return
    assert toml.load(toml.dump(machine)) == machine


@trials(deadline=None)  # a busy host is no failure
@given(st.text(max_size=200))
def test_any_text_is_a_machine_or_a_spec_error(text):
    machine, problems = toml.check(text)
    assert (machine is None) == bool(problems)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
keys = st.sampled_from(["name", "memory", "cpu", "disks", "nics", "boot", "usb", "qemu", "x"])


@trials(deadline=None)  # a busy host is no failure
@given(st.dictionaries(keys, values, max_size=5))
def test_any_tree_is_a_machine_or_problems(tree):
    machine, problems = toml.from_tree(tree)
    assert (machine is None) == bool(problems)


@trials(deadline=None)  # a busy host is no failure
@given(st.text(max_size=30), st.text(max_size=30))
def test_any_assignment_is_taken_or_refused_in_words(key, value):
    try:
        assign({}, key, value)
    except WirtError:
        return


def test_assignments_reach_into_lists_and_tables():
    tree = {"disks": [{"image": "a"}]}
    assign(tree, "disks[0].cache", "none")
    assign(tree, "cpu.vcpus", "3")
    assign(tree, "rng", "off")
    assign(tree, "nics", '[{backend = "user"}]')
    assert tree == {
        "disks": [{"image": "a", "cache": "none"}],
        "cpu": {"vcpus": 3},
        "rng": False,
        "nics": [{"backend": "user"}],
    }
    with pytest.raises(UsageError, match="no item 4"):
        assign(tree, "disks[4].cache", "none")
    with pytest.raises(UsageError) as caught:
        assign(tree, "memry", "1G")
    assert "memory" in caught.value.hint
    assert parse_key("a.b[2].c") == ("a", "b", 2, "c")


def test_the_schema_knows_every_top_level_setting():
    schema = machine_schema()
    known = set(schema["$defs"]["Machine"]["properties"])
    assert known == {setting.key for setting in settings(Machine) if "." not in setting.key}


def test_every_setting_explains_itself():
    assert [setting.key for setting in settings(Machine) if not setting.description] == []
