"""Cables over a real sshd in another network namespace, and what goes wrong with them."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.vm.conftest import Cli, Late
from tests.vm.network.conftest import namespace
from wirt.errors import HostError, NotFound, UsageError
from wirt.host.confine import switch_uid
from wirt.net.place import vde_port
from wirt.store import wires
from wirt.store.layout import home_at
from wirt.store.wires import Shape
from wirt.vm.context import Context
from wirt.vm.network.cables import cable_facts, create_cable, remove_cable, shape_cable
from wirt.vm.network.switches import (
    SwitchWish,
    create_switch,
    remove_switch,
    sockets_of,
    switch_facts,
)

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_tool("vde_switch"),
    pytest.mark.needs_tool("vde_plug"),
    pytest.mark.needs_tool("sshd"),
    pytest.mark.needs_tool("ssh-keygen"),
]


class Plug:
    """A port of a switch that a test holds in its hand."""

    def __init__(self, context, name: str) -> None:
        paths = wires.find(context.home, "switch", name)
        self.frames, self.control = vde_port(
            sockets_of(paths).control, paths.file("test"), port=0, text="test", uid=switch_uid()
        )

    def send(self, number: int) -> None:
        os.write(self.frames, b"\xff" * 6 + b"\x52\x54\0\0\0\1" + b"\x08\0" + bytes([number]) * 50)

    def hears(self, number: int, seconds: float = 120.0) -> bool:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            ready = select.select([self.frames], [], [], left)[0]
            if ready and os.read(self.frames, 2000)[14:15] == bytes([number]):
                return True
        return False

    def close(self) -> None:
        os.close(self.frames)
        os.close(self.control)


@pytest.fixture
def plugs(net):
    made = []

    def plug(context, name):
        made.append(Plug(context, name))
        return made[-1]

    yield plug
    for one in made:
        one.close()


class Far:
    """Another host: a network namespace with an sshd of its own, and a home of wirt's."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.address = "10.88.0.2"
        self.context = Context(home_at(str(base / "home")))
        (base / "home").mkdir(mode=0o711)
        for name in ("host", "user"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(base / name)], check=True
            )
        shutil.copy(base / "user.pub", base / "authorized")
        self.known = base / "known"
        key = " ".join((base / "host.pub").read_text().split()[:2])
        self.known.write_text(f"[{self.address}]:2222 {key}\n")
        self._holder = namespace()
        self._wire()
        self._daemon = self._sshd()

    def _inside(self, *words: str) -> list[str]:
        return ["nsenter", "--target", str(self._holder.pid), "--net", *words]

    def _wire(self) -> None:
        pid = str(self._holder.pid)
        here = ["ip", "link", "add", "far0", "type", "veth", "peer", "name", "eth0", "netns", pid]
        for line in (
            here,
            ["ip", "address", "add", "10.88.0.1/24", "dev", "far0"],
            ["ip", "link", "set", "far0", "up"],
            self._inside("ip", "address", "add", f"{self.address}/24", "dev", "eth0"),
            self._inside("ip", "link", "set", "eth0", "up"),
            self._inside("ip", "link", "set", "lo", "up"),
        ):
            subprocess.run(line, check=True)

    def _sshd(self) -> subprocess.Popen:
        program = self.base / "bin" / "wirt"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m wirt "$@"\n')
        program.chmod(0o755)
        home = self.context.home.root
        (self.base / "sshd_config").write_text(
            f"ListenAddress {self.address}:2222\nHostKey {self.base}/host\n"
            f"AuthorizedKeysFile {self.base}/authorized\nStrictModes no\nUsePAM no\n"
            f"PermitRootLogin yes\nPidFile none\n"
            f"SetEnv WIRT_HOME={home} PATH={program.parent}:/usr/bin:/usr/sbin:/bin\n"
        )
        os.makedirs("/run/sshd", exist_ok=True)
        words = [shutil.which("sshd", path="/usr/sbin:/usr/bin"), "-D", "-e", "-f"]
        with (self.base / "sshd.log").open("wb") as log:
            daemon = subprocess.Popen(
                self._inside(*words, str(self.base / "sshd_config")), stderr=log
            )
        deadline = time.monotonic() + 120
        while b"listening" not in (self.base / "sshd.log").read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return daemon

    def options(self, known: Path | None = None) -> tuple[str, ...]:
        return (
            f"IdentityFile={self.base}/user",
            "IdentitiesOnly=yes",
            f"UserKnownHostsFile={known or self.known}",
            "GlobalKnownHostsFile=/dev/null",
        )

    def url(self, switch: str) -> str:
        return f"ssh://root@{self.address}:2222/{switch}"

    def break_connections(self) -> None:
        """Kill the servers of all connections, not the one that listens."""
        subprocess.run(["pkill", "-KILL", "-P", str(self._daemon.pid)], check=True)

    def close(self) -> None:
        for name in wires.names(self.context.home, "switch"):
            remove_switch(self.context, name, force=True)
        self._daemon.terminate()
        self._daemon.wait()
        self._holder.kill()
        self._holder.wait()


@pytest.fixture
def far(net, tmp_path):
    made = Far(tmp_path)
    try:
        yield made
    finally:
        for name in wires.names(net.context.home, "cable"):
            remove_cable(net.context, name)
        made.close()
        subprocess.run(["ip", "link", "delete", "far0"], check=False, capture_output=True)


def measured(here: Plug, there: Plug, count: int) -> tuple[float, float]:
    """Send frames; return which part of them was lost, and the shortest way in seconds."""
    sent: dict[int, float] = {}
    took: dict[int, float] = {}

    def hear(seconds: float) -> bool:
        if not select.select([there.frames], [], [], seconds)[0]:
            return False
        number = os.read(there.frames, 2000)[14]
        if number in sent:
            took.setdefault(number, time.monotonic() - sent[number])
        return True

    for number in range(count):
        sent[number] = time.monotonic()
        here.send(number)
        wait = 0.01
        while hear(wait):  # all that is there: what waits too long is lost
            wait = 0.0
    while hear(5.0):
        pass
    return 1 - len(took) / count, min(took.values())


def test_a_cable_over_ssh_joins_two_hosts_and_comes_back_by_itself(net, far, plugs, eventually):
    context = net.context
    create_switch(context, "dmz", SwitchWish())
    create_switch(far.context, "dmz", SwitchWish())
    create_cable(context, "long", "dmz", far.url("dmz"), Shape(), far.options())
    here, there = plugs(context, "dmz"), plugs(far.context, "dmz")
    here.send(1)
    assert there.hears(1)
    shape_cable(context, "long", Shape(delay=300))
    eventually(lambda: "wirt switch plug" in str(switch_facts(far.context, "dmz").ports))
    began = time.monotonic()
    here.send(2)
    assert there.hears(2)
    assert time.monotonic() - began > 0.25
    shape_cable(context, "long", Shape(delay=50, loss=10))
    lost, shortest = measured(here, there, 200)
    assert shortest >= 0.045
    assert 0.02 <= lost <= 0.45  # a busy host drops some, too
    far.break_connections()

    def passes() -> bool:
        here.send(3)
        return there.hears(3, seconds=1.0)

    eventually(passes)
    assert cable_facts(context, "long").status == "up"
    control = sockets_of(wires.find(far.context.home, "switch", "dmz")).control
    create_cable(context, "by-path", "dmz", far.url(control), Shape(), far.options())
    remove_cable(context, "by-path")


def test_a_plug_that_begins_after_its_keeper_ended_ends_at_once(net):
    """The kernel has nothing to tell it: it must see by itself that it came too late."""
    for name in ("dmz", "lan"):
        create_switch(net.context, name, SwitchWish())
    cli = Cli(net.context.home.root)
    late = Late(cli, "vde_plug")
    process = cli.start("cable", "create", "dmz", "lan", "--name", "short")
    plug, keeper = late.await_both()
    process.kill()
    process.wait()
    keeper.kill()
    try:
        assert plug.wait(60)
    finally:
        plug.kill()


def test_what_stands_in_the_way_of_a_cable_is_said(net, far, tmp_path):
    context = net.context
    create_switch(context, "dmz", SwitchWish())
    empty = tmp_path / "nobody-known"
    empty.touch()
    cases = [
        (far.url("dmz"), far.options(empty), HostError, "host key .* is not known"),
        (far.url("dmz"), far.options(), NotFound, "there is no switch 'dmz'"),
        (far.url("dmz").replace("2222", "2"), far.options(), HostError, "cannot be reached"),
        (far.url("dmz"), (*far.options(), "IdentityFile=/dev/null", "PubkeyAuthentication=no"),
         HostError, "refuses our key"),
        ("nowhere", (), NotFound, "no switch 'nowhere'"),
        ("cmd://sh", (), UsageError, "no end"),
        ("dmz", (), UsageError, "circles"),
    ]  # fmt: skip
    for end, options, error, match in cases:
        with pytest.raises(error, match=match):
            create_cable(context, "x", "dmz", end, Shape(), options)
    for shape in (Shape(loss=101), Shape(jitter=5), Shape(delay=-1), Shape(bandwidth=1)):
        with pytest.raises(UsageError):
            create_cable(context, "x", "dmz", "vde:///nowhere", shape)
    with pytest.raises(NotFound, match="no switch at /nowhere"):
        create_cable(context, "x", "dmz", "vde:///nowhere", Shape())
    assert wires.names(context.home, "cable") == []
