"""Bridge networks: DHCP, names and the way out, on the host and in a private namespace."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading

import pytest

from tests.vm.network.conftest import reach
from wirt.errors import NotFound, SpecError, UsageError, WrongState
from wirt.net.frame import summary
from wirt.net.pcap import Frame
from wirt.spec.nic import Network, Nic, Rate, Switch, Unplugged, User
from wirt.store import wires
from wirt.store.record import read_record
from wirt.store.states import process_label, release
from wirt.store.wires import BridgeRecord
from wirt.vm.description import load_spec
from wirt.vm.forking.freeze import freeze
from wirt.vm.network.bridges import (
    BridgeWish,
    bridge_facts,
    create_bridge,
    ensure_bridge,
    place_of,
    remove_bridge,
)
from wirt.vm.network.capture import capture_card, capture_switch
from wirt.vm.network.drawing import svg, text
from wirt.vm.network.forwards import Forward, add_forward, forwards_of, remove_forward
from wirt.vm.network.nics import add_nic, limit, plug, remove_nic, set_link
from wirt.vm.network.survey import survey
from wirt.vm.network.switches import SwitchWish, create_switch
from wirt.vm.stop import stop

pytestmark = [
    pytest.mark.needs_qemu,
    pytest.mark.needs_root,
    pytest.mark.needs_tool("dnsmasq"),
    pytest.mark.needs_tool("nft"),
    pytest.mark.needs_tool("slirp4netns"),
]

NOTHING = Frame(0, b"", 0)
DHCP = "udhcpc -i eth0 -q -n -t 20 -T 1 -s /dhcp"


def card(number: int, name: str = "office", **more) -> dict:
    return {
        "mac": f"52:54:00:00:01:{number:02x}",
        "backend": {"type": "network", "name": name},
        **more,
    }


def interfaces() -> str:
    return subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout


def test_guests_of_a_private_network_get_addresses_and_know_each_other(net, eventually):
    """Everything that needs no root: DHCP, names, limits, another network, a capture."""
    context = net.context
    create_bridge(context, "office", BridgeWish(private=True, address="10.64.7.1/24"))
    one = net.guest("one", "", card(1))
    two = net.guest("two", "", card(2, rate={"to_guest": "1M", "from_guest": "1M"}))
    for shell in (one, two):
        shell(DHCP)
    reach(one, "two")
    reach(two, "one.wirt")
    reach(one, "10.64.7.1")
    assert "10.64.7.1" in one("ip route show default")
    leases = {lease.name: lease.address for lease in bridge_facts(context, "office").leases}
    assert set(leases) == {"one", "two"}
    place = place_of(ensure_bridge(context, "office"))
    answers = ("ping", "-c", "1", "-W", "5", leases["two"])
    eventually(lambda: place.run(*answers, check=False).returncode == 0)
    assert "wb-office" not in interfaces()
    rules = place.run("nft", "list", "ruleset").stdout.decode()
    assert "limit rate over 1 mbytes/second" in rules
    assert "masquerade" in rules

    with capture_card(context, "one") as capture:
        ping = threading.Thread(target=lambda: reach(one, "two"))
        ping.start()
        while "ICMP echo reply" not in summary((capture.get(30) or NOTHING).data):
            assert not capture.ended
        ping.join()

    stays_on_its_network_when_it_is_handed_over(context, one, place)
    record = wires.read(wires.find(context.home, "bridge", "office"), BridgeRecord)
    os.kill(record.dnsmasq.pid, 9)
    eventually(lambda: bridge_facts(context, "office").status == "down")
    ensure_bridge(context, "office")
    one(DHCP)
    found = survey(context)
    assert "10.64.7." in "\n".join(text(found))
    assert "<title>wirt net map</title>" in svg(found)
    with pytest.raises(WrongState, match="is used by one, two"):
        remove_bridge(context, "office")
    for name in ("one", "two"):
        stop(context, name, force=True)
    assert (
        os.listdir(os.path.join(wires.find(context.home, "bridge", "office").runtime, "hosts"))
        == []
    )


def stays_on_its_network_when_it_is_handed_over(context, one, place):
    """The second QEMU has a TAP of its own, with the limits; the first's is gone."""
    [before] = read_record(context.home.vm("two").record).run.wires
    frozen = freeze(context, "two")
    assert frozen.method == "freeze"
    release(frozen.state, process_label())
    [after] = read_record(context.home.vm("two").record).run.wires
    assert after.interface != before.interface
    reach(one, "two")
    shown = place.run("ip", "-br", "link").stdout.decode()
    rules = place.run("nft", "list", "ruleset").stdout.decode()
    assert after.interface in shown
    assert f"chain {after.interface} " in rules
    assert f"{before.interface} " not in shown
    assert f"chain {before.interface} " not in rules


def test_a_network_of_the_host_and_its_limits(net):
    context = net.context
    create_bridge(context, "office", BridgeWish(address="10.64.8.1/24"))
    one = net.guest("one", "", card(1))
    one(DHCP)
    reach(one, "10.64.8.1")
    subprocess.run(["ping", "-c", "1", "-W", "5", "10.64.8.10"], capture_output=True, check=False)
    limit(context, "one", "nic0", Rate(to_guest=500_000, from_guest=250_000))
    wire = read_record(context.home.vm("one").record).run.wires[0]
    shown = subprocess.run(
        ["tc", "qdisc", "show", "dev", wire.interface], capture_output=True, text=True, check=True
    ).stdout
    assert "tbf" in shown
    assert "rate 4Mbit" in shown
    assert throughput(one, "10.64.8.1") < 4 * 250_000
    limit(context, "one", "nic0", Rate())
    assert (
        "limit"
        not in subprocess.run(
            ["nft", "list", "ruleset"], capture_output=True, text=True, check=True
        ).stdout
    )
    stop(context, "one", force=True)
    remove_bridge(context, "office")


def throughput(shell, address: str) -> float:
    """Bytes a second that a guest sends to a server here, over a megabyte."""
    import time

    with socket.create_server((address, 0)) as server:
        port = server.getsockname()[1]
        sender = threading.Thread(
            target=lambda: shell(f"dd if=/dev/zero bs=1000 count=1000 | nc {address} {port}")
        )
        begun, total = time.monotonic(), 0  # before the guest: a stall here makes it no faster
        sender.start()
        connection, _ = server.accept()
        with connection:
            while data := connection.recv(65536):
                total += len(data)
        sender.join()
        return total / (time.monotonic() - begun)


def test_cards_are_added_plugged_linked_and_taken_out_while_the_guest_runs(net, eventually):
    context = net.context
    user = {"mac": "52:54:00:00:02:01", "backend": {"type": "user"}}
    one = net.guest("one", "10.5.0.1/24", user)
    two = net.guest("two", "10.5.0.2/24", {"mac": "52:54:00:00:02:02", "backend": {"type": "none"}})
    forwards_while_it_runs(context, one, eventually)
    plugs_while_it_runs(context, one, two, eventually)
    adds_and_removes_while_it_runs(context, one, eventually)


def forwards_while_it_runs(context, one, eventually):
    forward = add_forward(context, "one", Forward(host_port=0, guest_port=7))
    assert forwards_of(context, "one") == [forward]
    one("ip address add 10.0.2.15/24 dev eth0")
    thread = threading.Thread(target=lambda: one("echo hello | nc -l -p 7"))
    thread.start()
    heard = []

    def hear() -> bool:
        """The guest may not listen yet; then the connection ends. It answers one only."""
        with (
            contextlib.suppress(ConnectionError),
            socket.create_connection(("127.0.0.1", forward.host_port), timeout=60) as client,
        ):
            heard.append(client.recv(100))
        return b"hello\n" in heard

    eventually(hear)
    thread.join()
    remove_forward(context, "one", forward)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", forward.host_port), timeout=60)
    with pytest.raises(NotFound):
        remove_forward(context, "one", forward)


def plugs_while_it_runs(context, one, two, eventually):
    create_switch(context, "dmz", SwitchWish())
    create_bridge(context, "office", BridgeWish(private=True))
    plug(context, "one", "nic0", Switch(name="dmz"))
    plug(context, "two", "nic0", Switch(name="dmz"))
    reach(one, "10.5.0.2")
    with capture_switch(context, "dmz") as capture:
        reach(two, "10.5.0.1")
        while "ICMP echo request" not in summary((capture.get(60) or NOTHING).data):
            assert not capture.ended
    set_link(context, "two", "nic0", up=False)
    eventually(lambda: "0" in two("cat /sys/class/net/eth0/carrier", check=False))
    set_link(context, "two", "nic0", up=True)
    reach(one, "10.5.0.2")
    plug(context, "two", "nic0", Network(name="office"))  # through a hub: without offloads
    two(DHCP)
    with pytest.raises(NotFound, match="no switch 'nowhere'"):
        plug(context, "two", "nic0", Switch(name="nowhere"))
    assert load_spec(context.home.vm("two")).nics[0].backend == Network(name="office")


def adds_and_removes_while_it_runs(context, one, eventually):
    name = add_nic(context, "one", Nic(model="e1000e", backend=Network(name="office")))
    assert name == "nic1"
    eventually(lambda: "eth1" in one("ls /sys/class/net"))
    one("ip link set eth1 up; udhcpc -i eth1 -q -n -t 20 -T 1 -s /dhcp")
    with pytest.raises(SpecError, match="can be limited"):
        limit(context, "one", "nic0", Rate(to_guest=1000))
    remove_nic(context, "one", "nic1")
    assert len(load_spec(context.home.vm("one")).nics) == 1
    eventually(lambda: "eth1" not in one("ls /sys/class/net"))
    plug(context, "one", "nic0", Unplugged())
    plug(context, "one", "nic0", User())
    with pytest.raises(UsageError):
        create_bridge(context, "x", BridgeWish(address="10.0.0.0/24"))
