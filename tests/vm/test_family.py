"""``wirt tree``: the family of states, and what each costs."""

from __future__ import annotations

import json
import os

import pytest

from tests.vm.test_fork_faults import make, require_clean
from wirt.store.record import read_record
from wirt.vm.family import Node, drawn
from wirt.vm.forking.fork import fork
from wirt.vm.snapshot import snapshot


def node(kind, name, parent=""):
    return Node(kind=kind, name=name, parent=parent, created=0.0, ram=0, disk=0)


def test_branches_end_where_the_last_child_is():
    nodes = [
        node("state", "a"), node("state", "b", "a"), node("machine", "m", "b"),
        node("machine", "n", "b"), node("machine", "o", "a"), node("machine", "a", "gone"),
    ]  # fmt: skip
    assert [branch + one.name for branch, one in drawn(nodes)] == [
        "a", "├─ b", "│  ├─ m", "│  └─ n", "└─ o", "a",
    ]  # fmt: skip


@pytest.mark.needs_qemu
def test_the_tree_of_a_family_with_its_costs(context, cli):
    assert b"no machines" in cli("tree").stdout
    make(context)
    taken = snapshot(context, "src", "one")
    result = fork(context, "src", ["child"])
    nodes = json.loads(cli("tree", "--json").stdout)
    assert [(one["kind"], one["name"], one["parent"]) for one in nodes] == [
        ("state", taken.state, ""),
        ("state", result.state, taken.state),
        *(("machine", name, result.state) for name in ("src", "child")),
    ]  # fmt: skip
    first, second, *machines = nodes
    assert first["snapshots"] == ["src:one"]
    kept = os.stat(context.home.state(taken.state).kept_memory).st_blocks * 512
    assert first["disk"] > kept > 0
    assert (first["ram"], second["snapshots"]) == (0, [])
    for one in machines:
        paths = context.home.vm(one["name"])
        image = os.path.join(paths.disks, "disk0.qcow2")
        assert one["disk"] == os.stat(image).st_blocks * 512
        run = read_record(paths.record).run
        assert run.memory == "fork"
        with open(f"/proc/{run.pid}/status") as file:
            anonymous = int(file.read().split("RssAnon:")[1].split()[0]) * 1024
        assert 0 < one["ram"] <= anonymous + (1 << 20)
    text = cli("tree").stdout.decode()
    assert f"└─ state {result.state}" in text
    assert "snapshot src:one" in text
    require_clean(context)
