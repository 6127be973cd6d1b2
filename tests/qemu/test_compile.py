"""The whole line: what is refused with a remedy, and choices that depend on the host."""

import msgspec
import pytest

from tests.qemu import machines
from wirt.errors import HostError, MissingDependency, SpecError
from wirt.qapi.value import Argument
from wirt.qemu.compile import arguments
from wirt.qemu.machine import topology
from wirt.spec import toml
from wirt.spec.hardware import Cpu

CAPABILITIES = machines.recorded("7.2")


def compiled(text="", capabilities=CAPABILITIES, **facts):
    runtime = msgspec.structs.replace(machines.runtime("x"), **facts)
    return arguments(toml.load(f'name = "a"\n{text}'), runtime, capabilities)


def value_of(made, option):
    return next(argument.value for argument in made if argument.option == option)


def without(device):
    return msgspec.structs.replace(CAPABILITIES, devices=CAPABILITIES.devices - {device})


def test_a_missing_device_names_the_package():
    with pytest.raises(MissingDependency, match="no device qxl-vga") as error:
        compiled('video = { model = "qxl" }', without("qxl-vga"))
    assert "qemu-system-modules-spice" in error.value.hint


def test_a_device_of_newer_qemus_names_the_version():
    with pytest.raises(MissingDependency, match=r"\(7\.2\.\d+\) has no device virtio-s") as error:
        compiled('sound = ["virtio"]')
    assert "8.2" in error.value.hint


def test_a_missing_image_driver_says_how_to_convert():
    poor = CAPABILITIES.enums["blockdev-add"] - {"vmdk"}
    less = msgspec.structs.replace(CAPABILITIES, enums={**CAPABILITIES.enums, "blockdev-add": poor})
    with pytest.raises(SpecError, match="no driver for vmdk") as error:
        compiled('[[disks]]\nimage = "a"\nformat = "vmdk"', less)
    assert "convert" in error.value.hint


@pytest.mark.parametrize(
    ("command", "value", "text"),
    [
        ("netdev_add", "user", "[[nics]]"),
        ("chardev-add", "pty", '[[serials]]\nbackend = "pty"'),
        ("object-add", "rng-random", ""),
    ],
)
def test_every_kind_of_missing_backend_is_found_before_qemu_starts(command, value, text):
    poor = {**CAPABILITIES.enums, command: CAPABILITIES.enums[command] - {value}}
    with pytest.raises(MissingDependency, match=value):
        compiled(text, msgspec.structs.replace(CAPABILITIES, enums=poor))


def test_uefi_without_firmware_names_the_package():
    with pytest.raises(MissingDependency, match="UEFI") as error:
        compiled('firmware = { type = "uefi" }', firmware_code="")
    assert error.value.hint == "apt install ovmf"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[disks]]\nid = "video"\nimage = "a"', "'video' is used by two devices"),
        ('[[disks]]\nid = "nic0"\nimage = "a"\n[[nics]]', "'nic0' is used by two devices"),
        ('[[disks]]\nid = "disk1"\nimage = "a"\n[[disks]]\nimage = "b"', "two devices|block nodes"),
        ('[[channels]]\nname = "qmp"', "'qmp' is used by two character devices"),
        ('[[channels]]\nname = "serial0"', "two devices want the socket"),
        ("[[disks]]\nimage = 'a'\nboot_index = 1\n[[nics]]\nboot_index = 1", "boot_index '?1'? is"),
        ("serials = [{}, {}, {}, {}, {}]", "four serial ports"),
        ('serials = [{ backend = "stdio" }, { backend = "stdio" }]', "one serial port"),
        ('rtc = { base = "2006-13-01" }', "is not a date"),
        ('[[channels]]\nname = "1st"', "channels"),
        ('[[channels]]\nname = "Büro"', "channels"),
        ('displays = ["spice", "spice"]', "one spice"),
        ('displays = ["window", "window"]', "one window"),
        ('displays = [{ type = "vnc", listen = "localhost" }]', "ADDRESS:DISPLAY"),
        ('displays = [{ type = "spice", listen = "localhost:" }]', "ADDRESS:PORT"),
        ('video = { model = "virtio", memory = "32M" }', "video.memory"),
        ('video = { model = "cirrus", memory = "32M" }', "4M, 8M, 16M"),
        ('video = { memory = "3M" }', "video.memory"),
        ('usb = { controller = "ehci", devices = [{ kind = "audio" }] }', "no USB 1 devices"),
        ('sound = ["usb"]\nusb = { controller = "ehci" }', "no USB 1 devices"),
        ('usb = { devices = [{ kind = "host" }] }', r"usb.devices\[0\]"),
        ('machine_type = "pc-q35-99.0"', "no machine type"),
        ("[[disks]]\nbus='pflash'\nimage='a'\n[firmware]\ntype='uefi'", "both"),
    ],
)
def test_contradictions_are_refused_in_words(text, message):
    with pytest.raises(SpecError, match=message):
        compiled(text)


def test_31_channels_are_one_too_many():
    channel = '[[channels]]\nname = "c{}"\n'
    assert compiled("".join(channel.format(n) for n in range(30)))
    with pytest.raises(SpecError, match="at most 30"):
        compiled("".join(channel.format(n) for n in range(31)))


@pytest.mark.parametrize(("accelerator", "cpu"), [("kvm", "host"), ("tcg", "qemu64")])
def test_the_processor_follows_the_accelerator(accelerator, cpu):
    made = compiled(accelerator=accelerator)
    assert value_of(made, "-cpu") == cpu
    assert value_of(made, "-accel")["accel"] == accelerator
    assert ("tb-size" in value_of(made, "-accel")) == (accelerator == "tcg")


GUEST_FORWARD = '[[nics]]\nbackend = {{ type = "user", guest_forwards = ["tcp:10.0.2.9:7-{}"] }}'


@pytest.mark.parametrize(
    ("text", "spawn"),
    [
        ("", "deny"),
        ("[[nics]]", "deny"),
        ('[[nics]]\nbackend = { type = "user", smb = "/srv" }', "allow"),
        (GUEST_FORWARD.format("cmd:cat"), "allow"),
        (GUEST_FORWARD.format("tcp:127.0.0.1:7"), "deny"),
        ('displays = [{ type = "window" }]', "allow"),
    ],
)
def test_qemu_may_start_programs_only_where_the_machine_needs_it(text, spawn):
    sandbox = value_of(compiled(text), "-sandbox")
    assert sandbox["spawn"] == spawn
    assert sandbox["elevateprivileges"] == "deny"


def test_the_sandbox_can_be_left_to_the_caller():
    assert not any(argument.option == "-sandbox" for argument in compiled(sandbox=False))


def test_memory_is_a_multiple_of_what_qemu_gives_in_both_places():
    made = compiled('memory = "1000001K"')
    size = next(a.value["size"] for a in made if a.option == "-object" and a.value["id"] == "ram")
    assert size == 1000000 << 10
    assert value_of(made, "-m") == {"size": "1000000K"}


def test_a_socket_path_that_no_unix_socket_can_have_is_refused():
    with pytest.raises(HostError, match="too long"):
        compiled(socket=lambda name: f"/run/{'x' * 100}/{name}.sock")
    at_most = "/" + "x" * (107 - len("/qmp.sock"))
    assert compiled("serials = []", socket=lambda name: f"{at_most[:-1]}/{name}.sock")


def test_raw_words_come_last_and_untouched():
    made = compiled('[qemu]\nargs = ["-device", "edu,a=b,,c"]')
    assert made[-2:] == (Argument("-device"), Argument("edu,a=b,,c"))


def test_relative_paths_are_the_machine_directorys():
    nic = '[[nics]]\nbackend = { type = "user", tftp = "boot", smb = "share" }'
    value = value_of(compiled(nic), "-netdev")
    assert (value["tftp"], value["smb"]) == ("/vm/boot", "/vm/share")


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        (Cpu(), (1, 1, 1, 1)),
        (Cpu(vcpus=6), (6, 1, 6, 1)),
        (Cpu(vcpus=2, max_vcpus=8), (8, 1, 8, 1)),
        (Cpu(vcpus=8, sockets=2), (8, 2, 4, 1)),
        (Cpu(vcpus=8, cores=2), (8, 4, 2, 1)),
        (Cpu(vcpus=8, threads=2), (8, 1, 4, 2)),
        (Cpu(vcpus=8, sockets=2, cores=2), (8, 2, 2, 2)),
        (Cpu(vcpus=8, sockets=2, threads=2), (8, 2, 2, 2)),
        (Cpu(vcpus=8, cores=2, threads=2), (8, 2, 2, 2)),
        (Cpu(vcpus=8, sockets=2, cores=2, threads=2), (8, 2, 2, 2)),
    ],
)
def test_the_topology_always_multiplies_to_the_most_processors(cpu, expected):
    value = topology(cpu)
    assert (value["maxcpus"], value["sockets"], value["cores"], value["threads"]) == expected
    assert value["maxcpus"] == value["sockets"] * value["cores"] * value["threads"]
