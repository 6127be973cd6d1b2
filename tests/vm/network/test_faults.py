"""Programs, devices and addresses that are not there: what is said, and that nothing is left.

The program wirt runs in a mount namespace in which they are covered up.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest

from wirt.store import wires
from wirt.store.locks import run_lock_is_held

pytestmark = [
    pytest.mark.needs_qemu,
    pytest.mark.needs_root,
    pytest.mark.needs_tool("vde_switch"),
    pytest.mark.needs_tool("vde_plug"),
    pytest.mark.needs_tool("dnsmasq"),
    pytest.mark.needs_tool("nft"),
    pytest.mark.needs_tool("slirp4netns"),
]

MISSING = 8
TUN = "/dev/net"
# A directory is covered by an empty one, a program by what cannot be run.
COVER = """
if [ -d "$1" ]; then mount -t tmpfs none "$1"; else mount --bind /dev/null "$1"; fi
shift
exec "$@"
"""


@pytest.fixture
def wirt(net):
    """The program on the home of the test: exit code and what it said."""

    def run(*words: str, without: str = ""):
        line = [sys.executable, "-m", "wirt", *words]
        if without:
            covered = shutil.which(without, path="/usr/bin:/usr/sbin") or without
            line = ["unshare", "--mount", "sh", "-ec", COVER, "sh", covered, *line]
        env = {**os.environ, "WIRT_HOME": net.context.home.root}
        done = subprocess.run(
            line, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout + done.stderr

    return run


def nothing_is_left(net, *kinds):
    return all(wires.names(net.context.home, kind) == [] for kind in kinds)


def test_a_missing_program_is_named_with_its_package(net, wirt):
    code, said = wirt("switch", "create", "dmz", without="vde_switch")
    assert (code, "apt install vde2" in said) == (MISSING, True), said
    assert nothing_is_left(net, "switch")
    for program, package, words in (
        ("dnsmasq", "dnsmasq-base", ("office",)),
        ("dnsmasq", "dnsmasq-base", ("office", "--private")),
        ("nft", "nftables", ("office", "--private")),
        ("slirp4netns", "slirp4netns", ("office", "--private")),
    ):
        code, said = wirt("net", "create", *words, without=program)
        assert (code, f"apt install {package}" in said) == (MISSING, True), said
        assert nothing_is_left(net, "bridge")
    for name in ("dmz", "lan"):
        assert wirt("switch", "create", name)[0] == 0
    for program, package in (("vde_plug", "vdeplug"), ("wirefilter", "vde2")):
        code, said = wirt("cable", "create", "dmz", "lan", "--delay", "5ms", without=program)
        assert (code, f"apt install {package}" in said) == (MISSING, True), said
        assert nothing_is_left(net, "cable")


def test_a_host_without_taps_says_so_and_what_needs_none(net, wirt):
    code, said = wirt("switch", "create", "up", "--uplink", "tap", without=TUN)
    assert (code, "/dev/net/tun is missing" in said) == (MISSING, True), said
    assert nothing_is_left(net, "switch")
    assert wirt("net", "create", "office")[0] == 0
    net.machine("one", {"backend": {"type": "network", "name": "office"}})
    net.machine("two", {"backend": {"type": "tap"}})
    net.machine("three", {"backend": {"type": "none"}})
    for name in ("one", "two"):
        code, said = wirt("start", name, without=TUN)
        assert (code, "a switch, a socket" in said) == (MISSING, True), said
        assert not run_lock_is_held(net.context.home.vm(name).run_lock)
    assert wirt("start", "three")[0] == 0
    code, said = wirt("nic", "add", "three", "network=office", without=TUN)
    assert (code, "/dev/net/tun is missing" in said) == (MISSING, True), said
    assert len(json.loads(wirt("nic", "ls", "three", "--json")[1])) == 1


def test_an_address_that_is_taken_is_told_of_the_card_that_wants_it(net, wirt):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        net.machine("one")
        listen = f"socket,listen=127.0.0.1:{taken.getsockname()[1]}"
        assert wirt("nic", "add", "one", listen)[0] == 0
        code, said = wirt("start", "one")
        assert code == 6, said
        assert "nic0 cannot listen: another program" in said
        assert not run_lock_is_held(net.context.home.vm("one").run_lock)


@pytest.mark.parametrize(
    ("kind", "card"),
    [
        (socket.SOCK_STREAM, "stream,server=true,address={}"),
        (socket.SOCK_DGRAM, "dgram,remote=127.0.0.1:9,local={}"),
    ],
    ids=["stream", "dgram"],
)
def test_an_address_that_qemu_would_only_bind_later_is_looked_at_first(kind, card, net, wirt):
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        net.machine("one")
        assert wirt("nic", "add", "one", card.format(address))[0] == 0
        code, said = wirt("start", "one")
        assert (code, f"{address} is taken" in said) == (6, True), said
        assert not run_lock_is_held(net.context.home.vm("one").run_lock)
    assert wirt("start", "one")[0] == 0
    code, said = wirt("nic", "plug", "one", "nic0")  # its own address is in nobody's way
    assert code == 0, said


def test_names_that_could_be_commands_or_options_are_refused(net, wirt):
    for words in (
        ("switch", "create", "a,b"),
        ("switch", "create", "cmd://sh"),
        ("net", "create", "x;y"),
        ("cable", "create", "dmz", "cmd://sh -c id"),
        ("cable", "create", "dmz", "ssh://-oProxyCommand=sh/dmz"),
        ("nic", "add", "one", "vde=cmd://sh"),
        ("nic", "add", "one", "vde=/run/x,sock=cmd://sh"),
        ("create", "two", "--set", 'nics=[{backend={type="vde",path="cmd://sh"}}]'),
    ):
        code, said = wirt(*words)
        assert code in {2, 3, 4}, (words, said)
    assert nothing_is_left(net, "switch", "bridge", "cable")
