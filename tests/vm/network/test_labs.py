"""Labs with real guests: up from one file, forked at one instant, down without a trace."""

from __future__ import annotations

import contextlib
import os
from functools import partial
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from tests.vm.network.conftest import reach
from wirt.errors import AlreadyExists, NotFound, SpecError, WirtError
from wirt.store import wires
from wirt.store.machines import machine_names
from wirt.store.record import read_record
from wirt.store.states import state_ids
from wirt.store.wires import LabRecord
from wirt.vm.lab.down import bring_down
from wirt.vm.lab.fork import fork_lab
from wirt.vm.lab.up import bring_up
from wirt.vm.lab.view import list_labs, machine_of, view
from wirt.vm.stop import stop

pytestmark = [
    pytest.mark.needs_qemu,
    pytest.mark.needs_root,
    pytest.mark.needs_tool("vde_switch"),
    pytest.mark.needs_tool("vde_plug"),
    pytest.mark.needs_tool("ip"),
]

KERNEL_LINE = "console=ttyS0 no_timer_check mitigations=off quiet rdinit=/init"
PLACES = {"client": "dmz", "server": "lan", "third": "dmz", "fourth": "lan"}


@pytest.fixture
def description(net, guest_image, tiny_initrd):
    """Four machines, two switches and a cable, as a user writes them."""
    text = 'name = "shop"\n[switches.dmz]\n[switches.lan]\n'
    text += '[cables.backbone]\na = "dmz"\nb = "lan"\n'
    boot = {
        "kernel": os.fspath(guest_image.kernel),
        "initrd": os.fspath(tiny_initrd),
        "cmdline": KERNEL_LINE,
    }
    inline = ", ".join(f'{key} = "{value}"' for key, value in boot.items())
    for name, switch in PLACES.items():
        text += f'[machines.{name}]\nmemory = "160M"\ndisks = []\ndisplays = []\nchannels = []\n'
        text += f'video = {{ model = "none" }}\nboot = {{ {inline} }}\nwires = ["{switch}"]\n'
    try:
        yield text
    finally:
        for lab in wires.names(net.context.home, "lab"):
            with contextlib.suppress(WirtError):
                bring_down(net.context, lab)


@pytest.fixture
def shell_of(net, guests):
    shells = []

    def made(name, *, booted=False):
        tiny = guests["tiny"]
        path = tiny.console(net.context.home.vm(name))
        shells.append(tiny.Shell(path, booted=booted))
        return shells[-1]

    yield made
    for shell in shells:
        shell.close()


# Not as fast as it can: a log that changes its name would have lost the first ones.
SEND = (
    b"i=0; while :; do echo $i; i=$((i+1)); [ $((i % 20)) = 0 ] && sleep 0.02; done"
    b" | nc 10.9.0.2 5000\n"
)
# An end of its input would end the connection.
RECEIVE = b"sleep 9999 | nc -l -p 5000\n"


class Stream:
    """What a server prints on its console: the numbers that a client sends to it.

    Read from the log, which goes on when the machine is handed over to another QEMU.
    """

    def __init__(self, path: str) -> None:
        self._log = Path(path)

    def numbers(self) -> list[int]:
        """Return all whole numbers so far; the first line of a fork may be half of one."""
        lines = self._log.read_bytes().replace(b"\r", b"").split(b"\n")[1:-1]
        return [int(line) for line in lines if line.isdigit()]


def is_whole(numbers: list[int]) -> bool:
    """True if nothing is missing, doubled or out of order."""
    return all(later == earlier + 1 for earlier, later in pairwise(numbers))


def test_a_lab_comes_up_is_forked_while_it_talks_and_leaves_nothing(
    net, description, shell_of, eventually
):
    context = net.context
    lab = bring_up(context, description, file="/x/shop.toml", timeout=0)
    assert lab.name == "shop"
    assert bring_up(context, description, file="/x/shop.toml", timeout=0) == lab
    with pytest.raises(AlreadyExists, match="another description"):
        bring_up(context, description + "# other\n", file="/x/shop.toml", timeout=0)
    [row] = list_labs(context)
    assert (row.status, row.machines, row.switches, row.cables) == ("up", 4, 2, 1)

    client, server, third = (shell_of(f"shop.{name}") for name in ("client", "server", "third"))
    for number, shell in enumerate((client, server, third), 1):
        shell("ip link set eth0 up")
        shell(f"ip address add 10.9.0.{number}/24 dev eth0")
    reach(third, "10.9.0.2")
    stream = Stream(context.home.vm("shop.server").console_log)
    server.type(RECEIVE)
    client.type(SEND)
    eventually(lambda: len(stream.numbers()) > 200, what="nothing is sent")

    made = fork_lab(context, "shop", "trial")
    assert made.machines == tuple(f"trial.{name}" for name in PLACES)
    assert 0 < made.skew <= made.pause
    memory = {read_record(context.home.vm(f"shop.{name}").record).run.memory for name in PLACES}
    assert memory == {"fork"}  # all were handed over, and none copied
    assert view(context, "trial").status == view(context, "shop").status == "up"
    assert [one.name for one in list_labs(context) if one.parent == "shop"] == ["trial"]

    other = Stream(context.home.vm("trial.server").console_log)
    for one in (stream, other):
        before = len(one.numbers())
        more = partial(lambda one, count: len(one.numbers()) > count, one, before + 200)
        eventually(more, what="it stands still")
        assert is_whole(one.numbers())
    assert stream.numbers()[0] == 0
    assert 0 < other.numbers()[0] <= len(stream.numbers())

    other_third = shell_of("trial.third", booted=True)
    reach(other_third, "10.9.0.2")
    stop(context, machine_of(context, "trial", "server"), timeout=0, force=True)
    assert "bytes from" not in other_third("ping -c 3 -W 2 10.9.0.2; true")
    reach(shell_of("shop.third", booted=True), "10.9.0.2")
    assert view(context, "trial").status == "partial"

    fork_lab(context, "shop", "again")  # copied now, since they stand on a state themselves
    last = Stream(context.home.vm("again.server").console_log)
    for one in (stream, last):
        before = len(one.numbers())
        more = partial(lambda one, count: len(one.numbers()) > count, one, before + 100)
        eventually(more, what="it stands still")
        assert is_whole(one.numbers())

    for name in ("trial", "again", "shop"):
        bring_down(context, name)
    assert machine_names(context.home) == []
    assert state_ids(context.home) == []
    assert all(wires.names(context.home, kind) == [] for kind in ("switch", "cable", "lab"))


def test_what_was_left_by_killed_commands_is_mended_or_removed(net, description):
    """A lab whose machines are half gone, and one with more in its record than there is."""
    context = net.context
    bring_up(context, description, file="/x/shop.toml", timeout=0)
    paths = wires.find(context.home, "lab", "shop")
    stop(context, "shop.third", timeout=0, force=True)
    assert view(context, "shop").status == "partial"
    bring_up(context, description, file="/x/shop.toml", timeout=0)
    found = view(context, "shop")
    assert {row.status for row in found.machines} == {"running"}
    assert found.missing == ()

    record = wires.read(paths, LabRecord)
    ghosts = (*record.machines, "shop.ghost")
    wires.write(paths, msgspec.structs.replace(record, machines=ghosts))
    assert view(context, "shop").missing == ("shop.ghost",)
    bring_down(context, "shop")
    assert machine_names(context.home) == []
    with pytest.raises(NotFound, match="no lab"):
        bring_down(context, "shop")


def test_a_lab_that_cannot_come_up_leaves_nothing(net, description):
    context = net.context
    wrong = description.replace("[machines.fourth]", '[machines.fourth]\nimage = "no-such-image"')
    with pytest.raises(NotFound):
        bring_up(context, wrong, file="/x/shop.toml", timeout=0)
    broken = description.replace("/tiny", "/nothing").replace('initrd = "', 'initrd = "/gone')
    with pytest.raises(WirtError):
        bring_up(context, broken, file="/x/shop.toml", timeout=0)
    with pytest.raises(SpecError):
        bring_up(context, description.replace('"lan"', '"wan"'), file="/x/shop.toml", timeout=0)
    assert wires.names(context.home, "lab") == wires.names(context.home, "switch") == []
    assert machine_names(context.home) == []


def test_a_lab_does_not_take_the_names_of_others(net, description):
    context = net.context
    net.machine("shop.client")
    with pytest.raises(AlreadyExists, match=r"shop\.client"):
        bring_up(context, description, file="/x/shop.toml", timeout=0)
    assert machine_names(context.home) == ["shop.client"]
