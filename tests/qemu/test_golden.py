"""Each golden machine compiles to the command line that a person has looked at."""

import itertools
import re
import tomllib

import pytest

from tests.qemu import machines
from wirt.spec.machine import Machine
from wirt.spec.settings import settings

DEPRECATED = (
    "-no-hpet", "-no-acpi", "-no-kvm", "-drive", "-net", "-runas", "-chroot", "-run-with",
    "-soundhw", "-balloon", "-watchdog", "-usbdevice", "-hda", "-cdrom", "-sdl", "-full-screen",
    "-monitor", "-qmp", "-serial", "-parallel", "-enable-kvm", "-no-reboot", "-no-shutdown",
    "-portrait", "-rotate", "-writeconfig", "-realtime", "-localtime", "-startdate", "-mem-path",
    "-vga", "-nographic", "-snapshot", "-sd", "-pflash", "-fda", "-usb", "-redir", "-tftp",
)  # fmt: skip
"""Removed, deprecated, or sugar whose meaning changes between versions."""

KEY_VALUE = {
    "-machine", "-smp", "-chardev", "-mon", "-rtc", "-boot", "-spice", "-name", "-sandbox",
    "-accel", "-action", "-global", "-m", "-audiodev", "-msg", "-add-fd",
}  # fmt: skip


@pytest.mark.parametrize("name", machines.names())
def test_the_command_line_is_the_golden_one(name):
    golden = machines.GOLDEN / f"{name}.argv"
    made = machines.readable(machines.compiled(name))
    assert made == golden.read_text(), "look at the difference, then: python -m tests.qemu.regolden"


def test_every_golden_line_belongs_to_a_machine():
    lines = {path.stem for path in machines.GOLDEN.glob("*.argv")}
    assert lines == set(machines.names())


@pytest.mark.parametrize("name", machines.names())
def test_the_description_survives_toml(name):
    from wirt.spec import toml

    machine = machines.load(name)
    assert toml.load(toml.dump(machine)) == machine


@pytest.mark.parametrize("name", machines.names())
def test_the_line_does_not_depend_on_the_run(name):
    assert machines.compiled(name) == machines.compiled(name)


@pytest.mark.parametrize("name", machines.names())
def test_no_removed_option_and_no_short_boolean_is_used(name):
    words = machines.compiled(name)
    assert not set(words) & set(DEPRECATED)
    for option, value in itertools.pairwise(words):
        if option in KEY_VALUE:
            parts = re.split(r"(?<!,),(?!,)", value)
            assert all("=" in part for part in parts), value


@pytest.mark.parametrize("name", machines.names())
def test_every_device_has_an_identifier(name):
    for value in machines.json_values(machines.compiled(name), "-device"):
        assert value["id"], value


def test_every_pci_device_has_its_own_address():
    for name in machines.names():
        places = [
            (value["bus"], value["addr"])
            for value in machines.json_values(machines.compiled(name), "-device")
            if "addr" in value
        ]
        assert len(places) == len(set(places)), name


NOT_FOR_QEMU = {
    "description", "autostart", "accelerator", "forkable", "qemu.binary", "firmware.variables",
}  # fmt: skip
"""Settings that the host side of wirt acts on."""


def keys_of(tree, prefix=""):
    for key, value in tree.items():
        yield prefix + key
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                yield from keys_of(item, f"{prefix}{key}.")


def test_every_setting_stands_in_a_golden_machine():
    used = set(NOT_FOR_QEMU)
    for path in machines.GOLDEN.glob("*.toml"):
        used |= set(keys_of(tomllib.loads(path.read_text())))
    missing = {setting.key for setting in settings(Machine)} - used
    assert missing == set()
