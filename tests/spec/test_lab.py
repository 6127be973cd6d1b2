"""Descriptions of labs: whole or with every problem named at its line."""

import pytest

from wirt.errors import SpecError
from wirt.spec.lab import check, load
from wirt.spec.nic import Network, Switch, User

GOOD = """\
name = "shop"

[switches.dmz]
[switches.lan]
vlans = ["1=7"]

[networks.office]
address = "10.80.0.1/24"

[cables.backbone]
a = "dmz"
b = "lan"
delay = 20
jitter = 5
bandwidth = "2M"

[machines.web]
image = "debian:12"
memory = "256M"
wires = ["dmz", "office", "user"]

[machines.db]
image = "./db.qcow2"
disk_size = "20G"
nics = [{ backend = { type = "switch", name = "lan" }, mac = "52:54:00:00:00:01" }]
"""


def problems(text):
    lab, found = check(text, file="shop.toml")
    assert lab is None
    return [(one.line, one.key, one.problem) for one in found]


def test_names_are_private_to_the_lab():
    lab = load(GOOD, file="/x/shop.toml")
    web, database = lab.machines["web"], lab.machines["db"]
    assert web.machine.name == "shop.web"
    assert [nic.backend for nic in web.machine.nics] == [
        Switch("shop.dmz"), Network("shop.office"), User(),
    ]  # fmt: skip
    assert database.machine.nics[0].backend == Switch("shop.lan")
    assert database.disk_size == 20 << 30
    assert lab.cables["backbone"].bandwidth == 2 << 20
    other = load(GOOD, file="", name="trial")
    assert other.machines["db"].machine.nics[0].backend == Switch("trial.lan")


def test_the_file_gives_a_name_where_the_description_has_none():
    lab = load(GOOD.replace('name = "shop"', ""), file="/x/corner.toml")
    assert lab.name == "corner"


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ('wires = ["dmz", "office", "user"]', 'wires = ["dmx"]', 20, "no switch or network 'dmx'"),
        ('b = "lan"', 'b = "wan"', 12, "no switch 'wan'"),
        ('b = "lan"', 'b = "dmz"', 10, "both ends"),
        ("jitter = 5", "jitter = 50", 14, "at most the delay"),
        ('memory = "256M"', 'memroy = "256M"', 19, "not a setting"),
        ('name = "lan" }', 'name = "office" }', 25, "not in this lab"),
        ("[machines.web]", "[machines.'a.b']", 0, "no name"),
        ("[networks.office]", "[networks.lan]", 7, "a switch too"),
        ('name = "shop"', 'name = "a b"', 1, "cannot be a lab's name"),
        ("[switches.dmz]", "[switchs.dmz]", 0, "not a part of a lab"),
        ("[switches.dmz]", "[switches.dmz]\nuplink = 'cmd://x'", 4, "not allowed"),
        ('b = "lan"', "b = 7", 12, "text is expected"),
        ('disk_size = "20G"', 'name = "x"', 24, "the table's name"),
    ],
)  # fmt: skip
def test_every_problem_has_its_line(old, new, line, words):
    assert old in GOOD
    found = problems(GOOD.replace(old, new))
    assert any(words in problem for _, _, problem in found), found
    if line:
        assert line in [at for at, _, _ in found], found


def test_one_address_twice_on_a_wire_is_refused():
    card = '[{ backend = { type = "switch", name = "s" }, mac = "52:54:00:00:00:01" }]'
    text = f"[switches.s]\n[machines.a]\nnics = {card}\n[machines.b]\nnics = {card}\n"
    assert any("same address" in problem for _, _, problem in problems(text))


def test_a_lab_without_machines_is_none():
    assert problems("[switches.s]\n")[0][2] == "there are none"


def test_what_is_no_toml_says_where():
    assert problems("[machines.a\n")[0][0] == 1


def test_the_first_problem_is_raised_and_the_others_counted():
    with pytest.raises(SpecError) as caught:
        load("x = 1\ny = 2\n[machines.a]\n", file="f.toml")
    assert "1 more" in caught.value.hint
