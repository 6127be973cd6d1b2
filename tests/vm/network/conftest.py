"""A network namespace that stands for the host, wires in it, and tiny guests on them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import time

import pytest

from wirt.errors import WirtError
from wirt.store import wires
from wirt.store.machines import machine_names
from wirt.vm.create import Wish, create
from wirt.vm.network import bridges, cables, switches
from wirt.vm.remove import remove
from wirt.vm.start import start

CLONE_NEWNET = 0x40000000
KERNEL_LINE = "console=ttyS0 no_timer_check mitigations=off quiet rdinit=/init"


def own_namespace() -> str:
    return os.readlink("/proc/self/ns/net")


def namespace() -> subprocess.Popen:
    """Start a process that holds a network namespace of its own, and return when it does."""
    holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    while os.readlink(f"/proc/{holder.pid}/ns/net") == own_namespace():
        time.sleep(0.01)
    return holder


@pytest.fixture(scope="module")
def host():
    """This process, and what it starts, in a network namespace of its own."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    if libc.unshare(CLONE_NEWNET) != 0:
        pytest.skip(f"no network namespaces here: {os.strerror(ctypes.get_errno())}")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    try:
        yield
    finally:
        assert libc.setns(before, CLONE_NEWNET) == 0
        os.close(before)


def processes_here() -> dict[int, str]:
    """Every other process in this network namespace."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{entry}/ns/net") == own_namespace():
                    with open(f"/proc/{entry}/cmdline", "rb") as file:
                        found[int(entry)] = file.read().replace(b"\0", b" ").decode()
    return {pid: line for pid, line in found.items() if line}


def interfaces() -> set[str]:
    lines = subprocess.run(
        ["ip", "-br", "link"], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    return {line.split()[0].partition("@")[0] for line in lines}


class Net:
    """Wires and machines of one test; none of them is left when it ends."""

    def __init__(self, context, image, initrd, tiny) -> None:
        self.context = context
        self._image, self._initrd, self._tiny = image, initrd, tiny
        self._shells: list = []

    def machine(self, name: str, *nics: dict, **settings) -> None:
        tree = {
            "memory": "192M",
            "displays": [],
            "video": {"model": "none"},
            "balloon": False,
            "channels": [],
            "disks": [],
            "boot": {
                "kernel": os.fspath(self._image.kernel),
                "initrd": os.fspath(self._initrd),
                "cmdline": KERNEL_LINE,
            },
            "nics": list(nics),
            **settings,
        }
        create(self.context, name, None, Wish(settings=tree))

    def start(self, name: str):
        """Start a machine and return the shell of its guest."""
        start(self.context, name)
        shell = self._tiny.Shell(self._tiny.console(self.context.home.vm(name)))
        self._shells.append(shell)
        return shell

    def guest(self, name: str, address: str, *nics: dict, **settings):
        """Make and start a machine whose first card has ``address`` (empty: none)."""
        self.machine(name, *nics, **settings)
        shell = self.start(name)
        shell("ip link set eth0 up")
        if address:
            shell(f"ip address add {address} dev eth0")
        return shell

    def end(self) -> None:
        for shell in self._shells:
            shell.close()
        for name in machine_names(self.context.home):
            with contextlib.suppress(WirtError):
                remove(self.context, name, force=True)
        for kind, remove_one in (
            ("cable", cables.remove_cable),
            ("switch", switches.remove_switch),
            ("bridge", bridges.remove_bridge),
        ):
            for name in wires.names(self.context.home, kind):
                remove_one(self.context, name)


@pytest.fixture
def net(host, context, guest_image, tiny_initrd, guests):
    made = Net(context, guest_image, tiny_initrd, guests["tiny"])
    before = interfaces()
    try:
        yield made
    finally:
        made.end()
    deadline = time.monotonic() + 60
    while (processes_here() or interfaces() != before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_here() == {}
    assert interfaces() == before


def reach(shell, address: str) -> None:
    """Let a guest reach an address; on a busy host that is not done with the first packet."""
    shell(f"for i in $(seq 100); do ping -c 1 -W 2 {address} && exit 0; done; exit 1", timeout=300)


def eventually(check, *, seconds: float = 300.0, what: str = "") -> None:
    """Wait for ``check`` to be true: guests and kernels take their time."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.fixture(name="eventually")
def _eventually():
    return eventually
