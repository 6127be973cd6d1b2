"""Forks of labs that are killed at every step: the old lab lives, nothing of the new one stays.

The machines have no guest: their firmware runs, which is enough to be frozen.
"""

from __future__ import annotations

import os

import pytest

from tests.vm.test_fork_faults import kill_at
from wirt.host.holders import processes_with
from wirt.store import states, wires
from wirt.store.machines import machine_names
from wirt.store.record import read_record
from wirt.vm import state
from wirt.vm.lab.down import bring_down
from wirt.vm.lab.fork import fork_lab
from wirt.vm.lab.up import bring_up
from wirt.vm.lab.view import list_labs
from wirt.vm.start import start
from wirt.vm.stop import stop

pytestmark = [
    pytest.mark.needs_qemu,
    pytest.mark.needs_root,
    pytest.mark.needs_tool("vde_switch"),
    pytest.mark.needs_tool("vde_plug"),
    pytest.mark.needs_tool("ip"),
]

MACHINE = """
[machines.{name}]
memory = "64M"
disk_size = "1M"
displays = []
channels = []
video = {{ model = "none" }}
wires = ["{switch}"]
"""
LAB = (
    'name = "shop"\n[switches.dmz]\n[switches.lan]\n[cables.backbone]\na = "dmz"\nb = "lan"\n'
    + MACHINE.format(name="one", switch="dmz")
    + MACHINE.format(name="two", switch="lan")
)
NAMES = ["shop.one", "shop.two"]
# A number: not the first machine that comes there, but the second.
HANDED_OVER = (
    "lab-entered", "lab-wired", "journaled", "second-begun:2", "stopped", "stopped:2", "saved",
    "loaded", "loaded:2", "decided", "decided:2", "first-ended", "handed-over", "lab-frozen",
    "child-filled", "child-published:2", "child-loaded", "child-runs", "lab-spawned",
)  # fmt: skip
COPIED = ("nodes-added", "stopped", "snapshot", "saved:2", "handed-over")


@pytest.fixture
def lab(net):
    bring_up(net.context, LAB, file="/x/shop.toml", timeout=0)
    yield net.context
    for name in wires.names(net.context.home, "lab"):
        bring_down(net.context, name)
    assert machine_names(net.context.home) == []
    states.sweep_states(net.context.home)
    for name in states.state_ids(net.context.home):  # unfinished ones have a minute
        os.utime(net.context.home.state(name).root, (0, 0))
    states.sweep_states(net.context.home)
    assert states.state_ids(net.context.home) == []


def fork_killed_at(context, point):
    """Run ``wirt lab fork`` that is killed, or kills, at a point."""
    return kill_at(context, point, "lab", "fork", "shop", "trial")


def require_only_shop(context, running=tuple(NAMES)):
    """The next command on labs finds the old lab as it was, and nothing else."""
    assert [row.name for row in list_labs(context)] == ["shop"]
    assert machine_names(context.home) == NAMES
    assert wires.names(context.home, "switch") == ["shop.dmz", "shop.lan"]
    assert wires.names(context.home, "cable") == ["shop.backbone"]
    for name in running:
        paths = context.home.vm(name)
        found = state.look(paths)
        assert found.status == "running", found
        assert found.record.handover is None
        assert [p.pid for p in processes_with(paths.run_lock)] == [found.record.run.pid]
        assert [wire.nic.backend.name for wire in found.record.run.wires] == [
            "shop.dmz" if name == "shop.one" else "shop.lan"
        ]


def start_anew(context):
    """Run the machines on memory that can be handed over."""
    for name in NAMES:
        run = read_record(context.home.vm(name).record).run
        if run is not None and run.memory == "fork":
            stop(context, name, force=True)
        start(context, name)


def test_wirt_killed_at_any_step_of_a_fork(lab):
    for point in HANDED_OVER:
        assert fork_killed_at(lab, point)[0] == -9, point
        require_only_shop(lab)
        start_anew(lab)
    fork_lab(lab, "shop", "trial")
    runs = [read_record(lab.home.vm(name).record).run for name in NAMES]
    assert [run.memory for run in runs] == ["fork", "fork"]  # they were handed over
    bring_down(lab, "trial")
    for point in COPIED:
        assert fork_killed_at(lab, point)[0] == -9, point
        require_only_shop(lab)
    assert fork_killed_at(lab, "lab-whole")[0] == -9
    assert {row.name: row.status for row in list_labs(lab)} == {"shop": "up", "trial": "up"}


def test_the_qemu_of_one_machine_killed_at_any_step_of_a_fork(lab):
    lock = lab.home.vm("shop.one").run_lock
    for point in ("journaled", "second-begun:2", "stopped:2", "saved:2", "loaded:2", "decided:2"):
        code, said = fork_killed_at(lab, f"{point}={lock}")
        assert "Traceback" not in said, (point, said)
        if point == "decided:2" and code == 0:  # its state was whole before it was killed
            bring_down(lab, "trial")
        else:
            assert code > 0, point
            assert said.startswith("wirt: shop."), said
        require_only_shop(lab, running=["shop.two"])
        assert state.look(lab.home.vm("shop.one")).status == "stopped", point
        start_anew(lab)
    require_only_shop(lab)


def test_down_takes_what_a_killed_fork_left(lab):
    assert fork_killed_at(lab, "child-runs")[0] == -9
    assert "trial" in wires.names(lab.home, "lab")
    bring_down(lab, "trial")
    require_only_shop(lab)
