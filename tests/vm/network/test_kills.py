"""Commands on switches, cables and networks that are killed: what they had started is found."""

from __future__ import annotations

import pytest

from tests.vm.test_fork_faults import kill_at
from wirt.errors import AlreadyExists
from wirt.store import wires
from wirt.store.wires import Shape
from wirt.vm.network.bridges import BridgeWish, bridge_facts, create_bridge, ensure_bridge
from wirt.vm.network.cables import cable_facts, create_cable, ensure_cable, remove_cable
from wirt.vm.network.mend import mend
from wirt.vm.network.switches import SwitchWish, create_switch, ensure_switch, switch_facts

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_tool("vde_switch"),
    pytest.mark.needs_tool("vde_plug"),
    pytest.mark.needs_tool("dnsmasq"),
    pytest.mark.needs_tool("nft"),
    pytest.mark.needs_tool("slirp4netns"),
]

BEGUN = "helper-begun"


def killed_at(context, point: str, *words: str) -> None:
    code, said = kill_at(context, point, *words)
    assert code == -9, (point, words, said)


def test_a_switch_whose_making_was_killed_is_there_by_its_name(net):
    context = net.context
    for point in (BEGUN, "switch-begun"):
        killed_at(context, point, "switch", "create", point, "--vlans", "1=7")
        with pytest.raises(AlreadyExists):
            create_switch(context, point, SwitchWish())
        assert switch_facts(context, point).status == "down", "its VLANs may be missing"
    assert mend(context).switches == (BEGUN, "switch-begun")
    for point in (BEGUN, "switch-begun"):
        facts = switch_facts(context, point)
        assert (facts.status, [port.vlan for port in facts.ports]) == ("up", [7])
    # The fixture removes them, and finds every process gone.


def test_a_switch_that_was_killed_and_whose_start_was_killed_too_gets_its_vlans(net):
    context = net.context
    create_switch(context, "dmz", SwitchWish(persist=True))
    record = ensure_switch(context, "dmz")
    killed_at(context, "switch-begun", "switch", "create", "lan", "--vlans", "1=7")
    assert ensure_switch(context, "lan").process is not None
    assert [port.vlan for port in switch_facts(context, "lan").ports] == [7]
    assert ensure_switch(context, "dmz") == record, "one that is well is left alone"


def test_a_cable_whose_making_was_killed_is_there_by_its_name(net, eventually):
    context = net.context
    for name in ("dmz", "lan"):
        create_switch(context, name, SwitchWish())
    killed_at(context, BEGUN, "cable", "create", "dmz", "lan", "--name", "between")
    with pytest.raises(AlreadyExists):
        create_cable(context, "between", "dmz", "lan", Shape())
    ensure_cable(context, "between")
    eventually(lambda: cable_facts(context, "between").status == "up")
    killed_at(context, BEGUN, "cable", "create", "lan", "dmz", "--name", "back")
    remove_cable(context, "back")


@pytest.mark.parametrize("private", [True, False], ids=["private", "host"])
def test_a_network_whose_making_was_killed_is_there_by_its_name(net, private):
    context = net.context
    words = ["net", "create", "office", *(["--private"] if private else [])]
    points = [BEGUN, f"{BEGUN}:2", f"{BEGUN}:3"] if private else [BEGUN]
    for point in points:
        killed_at(context, point, *words)
        with pytest.raises(AlreadyExists):
            create_bridge(context, "office", BridgeWish())
        assert bridge_facts(context, "office").status == "down"
        ensure_bridge(context, "office")
        assert bridge_facts(context, "office").status == "up"
        wires_removed(net)


def wires_removed(net) -> None:
    net.end()
    assert wires.names(net.context.home, "bridge") == []
