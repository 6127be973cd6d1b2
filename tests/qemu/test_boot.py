"""The firmware boots what the description says: boot sectors tell who was first."""

import socket
import time

import pytest

from tests.qemu import live, sectors
from wirt.spec import toml

pytestmark = pytest.mark.needs_qemu

SECONDS = 300.0

DISKS = """
[[disks]]
image = "A"
format = "raw"
[[disks]]
image = "B"
format = "raw"
bus = "sata"
[[disks]]
image = "C"
format = "raw"
bus = "sata"
media = "cdrom"
[[disks]]
image = "D"
format = "raw"
bus = "floppy"
"""


def write_disks(base, sector=sectors.says):
    for letter in "AB":
        (base / letter).write_bytes(sector(letter).ljust(1 << 20, b"\x00"))
    (base / "C").write_bytes(sectors.el_torito(sector("C")))
    (base / "D").write_bytes(sector("D").ljust(1440 << 10, b"\x00"))


def first_words(text, qemu, base, count=1):
    """Boot the machine and return the first letters on its serial port."""
    binary, capabilities = qemu
    machine = toml.load(f'name = "boot"\nmemory = "32M"\ndisplays = []\n{text}')
    deadline = time.monotonic() + SECONDS
    said = b""
    with live.running(machine, capabilities, binary, base) as guest:
        console = socket.socket(socket.AF_UNIX)
        with console:
            console.connect(str(base / "serial0.sock"))
            guest.qmp.execute("cont")
            while len(said) < count:
                console.settimeout(max(0.1, deadline - time.monotonic()))
                heard = console.recv(100)
                assert heard, "QEMU ended"
                said += heard
    return said.decode()[:count]


@pytest.mark.parametrize(
    ("head", "first"),
    [
        ("", "A"),
        ('boot = { order = ["cdrom", "disk"] }', "C"),
        ('boot = { order = ["floppy"] }', "D"),
        ('machine_type = "pc"', "A"),
        ('machine_type = "pc"\nboot = { order = ["floppy"] }', "D"),
        ('machine_type = "pc"\nboot = { order = ["cdrom"] }', "C"),
    ],
)
def test_the_first_kind_of_the_order_boots(head, first, qemu, base):
    write_disks(base)
    assert first_words(head + DISKS, qemu, base) == first


@pytest.mark.parametrize("letter", "ABCD")
def test_boot_index_goes_before_the_order(letter, qemu, base):
    write_disks(base)
    disks = DISKS.replace(f'image = "{letter}"', f'image = "{letter}"\nboot_index = 200')
    assert first_words(disks, qemu, base) == letter


def test_once_is_for_the_first_boot_only(qemu, base):
    write_disks(base, sectors.says_and_resets)
    head = 'boot = { order = ["disk"], once = ["cdrom"] }'
    said = first_words(head + DISKS, qemu, base, count=3)
    assert said[0] == "C"
    assert said[1] == said[2]
    assert said[1] in "AB"


def test_a_usb_stick_and_a_usb_cd_boot(qemu, base):
    write_disks(base)
    stick = '[[disks]]\nimage = "A"\nformat = "raw"\nbus = "usb"\n'
    assert first_words(stick, qemu, base) == "A"
    cd = '[[disks]]\nimage = "C"\nformat = "raw"\nbus = "usb"\nmedia = "cdrom"\n'
    assert first_words(cd, qemu, base) == "C"


def test_all_root_ports_and_more_boot(qemu, base):
    write_disks(base)
    text = '[[disks]]\nimage = "A"\nformat = "raw"\nread_only = true\n' * 26 + "[[nics]]\n" * 9
    assert first_words(text, qemu, base) == "A"


@pytest.mark.parametrize(("action", "status"), [("pause", "guest-panicked"), ("none", "running")])
def test_a_panicking_guest_is_noticed(action, status, qemu, base):
    (base / "A").write_bytes(sectors.panics().ljust(1 << 20, b"\x00"))
    binary, capabilities = qemu
    machine = toml.load(
        f'name = "panic"\nmemory = "32M"\nactions = {{ panic = "{action}" }}\n'
        '[[disks]]\nimage = "A"\nformat = "raw"\n'
    )
    with live.running(machine, capabilities, binary, base) as guest:
        guest.qmp.execute("cont")
        guest.qmp.wait_event(["GUEST_PANICKED"], timeout=SECONDS)
        answer = guest.qmp.execute("query-status", reply=dict)
        assert answer["status"] == status
