"""VDE switches with real guests on them."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.vm.network.conftest import reach
from wirt.errors import AlreadyExists, NotFound, UsageError, WrongState
from wirt.net.switch import PortVlan
from wirt.spec.nic import Switch
from wirt.store import wires
from wirt.store.record import read_record
from wirt.store.wires import Shape, SwitchRecord
from wirt.vm.network import switches
from wirt.vm.network.boot_text import switch_boot_text
from wirt.vm.network.cables import create_cable, cut_cable, mend_cable, shape_cable
from wirt.vm.network.mend import mend, start_persistent
from wirt.vm.network.switches import SwitchWish, create_switch, remove_switch, switch_facts
from wirt.vm.stop import stop

pytestmark = [
    pytest.mark.needs_qemu,
    pytest.mark.needs_root,
    pytest.mark.needs_tool("vde_switch"),
    pytest.mark.needs_tool("vde_plug"),
    pytest.mark.needs_tool("ip"),
]


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def card(number: int, name: str, **more) -> dict:
    return {
        "mac": f"52:54:00:00:00:{number:02x}",
        "backend": {"type": "switch", "name": name, **more},
    }


def ping(shell, address: str) -> str:
    """Reach an address; then measure."""
    reach(shell, address)
    return shell(f"ping -c 5 -i 0.2 -W 5 {address}")


def milliseconds(output: str) -> float:
    """The smallest round trip that ping reports."""
    return float(output.rpartition("= ")[2].split("/")[0])


def kill_switch(context, name: str) -> None:
    record = wires.read(wires.find(context.home, "switch", name), SwitchRecord)
    os.kill(record.process.pid, 9)


def test_guests_reach_each_other_and_the_host_through_a_switch_that_is_killed_and_mended(net):
    """Switch, tap, bridge, VLAN, a second switch, a cable shaped while frames pass: one setup."""
    context = net.context
    run("ip", "link", "add", "br0", "type", "bridge")
    run("ip", "address", "add", "10.5.0.254/24", "dev", "br0")
    run("ip", "link", "set", "br0", "up")
    create_switch(context, "dmz", SwitchWish(uplink="bridge=br0"))
    create_switch(context, "far", SwitchWish())
    create_cable(context, "between", "dmz", "far", Shape())
    one = net.guest("one", "10.5.0.1/24", card(1, "dmz"))
    two = net.guest("two", "10.5.0.2/24", card(2, "far"))
    ping(one, "10.5.0.2")
    ping(one, "10.5.0.254")
    ping(two, "10.5.0.254")
    run("ping", "-c", "20", "-i", "0.2", "-W", "5", "10.5.0.2")  # one answer is enough

    facts = switch_facts(context, "dmz")
    assert facts.machines == ("one",)
    macs = {address.mac: address.port for address in facts.addresses}
    port = next(port for port in facts.ports if "wirt one nic0" in port.plugs)
    assert macs["52:54:00:00:00:01"] == port.number
    assert port.received_packets > 0
    assert port.sent_bytes > 0

    shape_cable(context, "between", Shape(delay=50))
    assert milliseconds(ping(one, "10.5.0.2")) > 95
    shape_cable(context, "between", Shape(loss=100))
    one("! ping -c 2 -W 2 10.5.0.2")
    shape_cable(context, "between", Shape(loss=10))
    output = one("ping -c 200 -i 0.02 -W 2 10.5.0.2", check=False)
    lost = int(output.partition("% packet loss")[0].split()[-1])
    assert 5 < lost < 45  # 19 % of the round trips on the whole
    shape_cable(context, "between", Shape())
    cut_cable(context, "between")
    one("! ping -c 2 -W 2 10.5.0.2")
    mend_cable(context, "between")
    ping(one, "10.5.0.2")

    kill_switch(context, "dmz")
    assert "no answer" in one("ping -c 1 -W 2 10.5.0.254 || echo no answer")
    done = mend(context)
    assert done.switches == ("dmz",)
    assert done.cards == ("one:nic0",)
    assert done.failed == ()
    ping(one, "10.5.0.254")
    ping(one, "10.5.0.2")
    assert mend(context).cards == ()

    with pytest.raises(WrongState, match="is used by one"):
        remove_switch(context, "dmz")
    stop(context, "one", force=True)
    remove_switch(context, "dmz")
    with pytest.raises(NotFound):
        switch_facts(context, "dmz")
    run("ip", "link", "delete", "br0")


def test_vlans_separate_cards_and_a_start_brings_a_killed_switch_back(net):
    context = net.context
    create_switch(context, "dmz", SwitchWish(ports=8))
    one = net.guest("one", "10.5.0.1/24", card(1, "dmz", vlan=7))
    two = net.guest("two", "10.5.0.2/24", card(2, "dmz", vlan=7))
    ping(one, "10.5.0.2")
    kill_switch(context, "dmz")
    three = net.guest("three", "10.5.0.3/24", card(3, "dmz"))  # mends it for the others
    ping(two, "10.5.0.1")
    three("! ping -c 1 -W 2 10.5.0.1")
    number = next(
        p.number for p in switch_facts(context, "dmz").ports if "wirt three nic0" in p.plugs
    )
    switches.set_vlans(context, "dmz", (PortVlan(number, 7),))
    ping(three, "10.5.0.1")
    stop(context, "one", force=True)
    left = [port for port in switch_facts(context, "dmz").ports if port.reserved]
    assert sorted(port.active for port in left) == [False, True]
    wire = read_record(context.home.vm("two").record).run.wires[0]
    assert wire.nic.backend == Switch(name="dmz", vlan=7)


def test_a_switch_refuses_what_it_cannot_be(net):
    context = net.context
    for name in ("a,b", "cmd://sh", "../x", "-x", ""):
        with pytest.raises(UsageError):
            create_switch(context, name, SwitchWish())
    with pytest.raises(NotFound, match="no bridge nowhere"):
        create_switch(context, "one", SwitchWish(uplink="bridge=nowhere"))
    with pytest.raises(UsageError, match="is not a bridge"):
        create_switch(context, "one", SwitchWish(uplink="bridge=lo"))
    with pytest.raises(NotFound, match="no network 'office'"):
        create_switch(context, "one", SwitchWish(uplink="network=office"))
    with pytest.raises(UsageError):
        create_switch(context, "one", SwitchWish(ports=4, vlans=(PortVlan(5, 7),)))
    assert wires.names(context.home, "switch") == []
    create_switch(context, "one", SwitchWish(uplink="tap=here"))
    assert "here" in run("ip", "-br", "link")
    with pytest.raises(AlreadyExists):
        create_switch(context, "one", SwitchWish())


def test_a_switch_that_is_to_persist_is_started_at_boot(net):
    context = net.context
    create_switch(context, "dmz", SwitchWish(persist=True))
    create_switch(context, "lan", SwitchWish(uplink="tap", vlans=(PortVlan(1, 7),)))
    for name in ("dmz", "lan"):
        kill_switch(context, name)
    assert start_persistent(context).switches == ("dmz",)
    stanza = switch_boot_text(context, "lan", "ifupdown")
    assert "vde2-switch -t ws-lan -n 33 -f /etc/vde2/wirt.rc" in stanza
    assert "port/setvlan 1 7" in stanza
    unit = switch_boot_text(context, "dmz", "systemd")
    assert "ExecStart=/usr/bin/vde_switch -d" in unit
    with pytest.raises(UsageError, match="has no tap"):
        switch_boot_text(context, "dmz", "ifupdown")


def test_two_cards_with_one_address_are_refused_on_one_wire_only(net):
    context = net.context
    create_switch(context, "dmz", SwitchWish())
    create_switch(context, "far", SwitchWish())
    net.machine("one", card(1, "dmz"))
    net.machine("two", card(1, "dmz"))
    net.machine("three", card(1, "far"))
    net.start("one")
    with pytest.raises(AlreadyExists, match="one has the address"):
        net.start("two")
    net.start("three")
