"""TCP throughput and round trip of every backend, against a TAP of a QEMU typed by hand.

Four small guests: one by hand on a TAP, one with a card on each path to the host, two with a
card on each path to one another. All of it in a network namespace of its own (needs root).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from bench.pairs import Row, Sample, compare
from wirt.catalog.build import build_image
from wirt.catalog.catalog import Catalog
from wirt.catalog.recipe import Recipe
from wirt.host.accel import choose_accelerator
from wirt.host.qemu_probe import probe
from wirt.store.layout import home_at
from wirt.vm.context import Context
from wirt.vm.create import Wish, create
from wirt.vm.network.bridges import BridgeWish, create_bridge, remove_bridge
from wirt.vm.network.switches import SwitchWish, create_switch, remove_switch
from wirt.vm.remove import remove
from wirt.vm.start import start

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "guests"))
import tiny

MIB = int(os.environ.get("WIRT_BENCH_MIB", "64"))
ROUNDS = int(os.environ.get("WIRT_BENCH_ROUNDS", "5"))
PORT = 5001
CLONE_NEWNET = 0x40000000
LINE = "console=ttyS0 no_timer_check mitigations=off quiet rdinit=/init"
HAND = "tap, QEMU's line typed by hand"
TITLE = "Networks: seconds for the same work"
HOST_PATHS: tuple[tuple[str, dict[str, Any], str, str], ...] = (
    ("network (tap, bridge)", {"type": "network", "name": "bench"}, "10.91.2.9/24", "10.91.2.1"),
    ("switch with a tap", {"type": "switch", "name": "up"}, "10.91.3.9/24", "10.91.3.1"),
    ("user", {"type": "user"}, "10.0.2.15/24", "10.0.2.2"),
)
GUEST_PATHS: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("network", {"type": "network", "name": "bench"}, {"type": "network", "name": "bench"}),
    ("switch", {"type": "switch", "name": "flat"}, {"type": "switch", "name": "flat"}),
    (
        "socket",
        {"type": "socket", "listen": "127.0.0.1:7001"},
        {"type": "socket", "connect": "127.0.0.1:7001"},
    ),
    (
        "stream",
        {"type": "stream", "address": "127.0.0.1:7002", "server": True},
        {"type": "stream", "address": "127.0.0.1:7002"},
    ),
    (
        "dgram",
        {"type": "dgram", "local": "127.0.0.1:7003", "remote": "127.0.0.1:7004"},
        {"type": "dgram", "local": "127.0.0.1:7004", "remote": "127.0.0.1:7003"},
    ),
)


def rows() -> list[Row]:
    if ctypes.CDLL(None).unshare(CLONE_NEWNET) != 0:
        raise SystemExit("this bench needs root: sudo make bench")
    run("ip", "link", "set", "lo", "up")
    root = tempfile.mkdtemp(prefix="wirt-bench-", dir="/var/tmp")
    os.chmod(root, 0o711)
    try:
        with Bench(Context(home_at(root))) as bench:
            return bench.rows()
    finally:
        shutil.rmtree(root)


def run(*words: str) -> None:
    subprocess.run(words, check=True)


class Bench:
    """The guests, and what is measured on them."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._prepare(stack)
            self._undo = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _prepare(self, stack: contextlib.ExitStack) -> None:
        cache = Path(os.environ.get("WIRT_TEST_CACHE") or f"/var/tmp/wirt-tests-{os.geteuid()}")
        cache.mkdir(mode=0o711, exist_ok=True)
        self.image = build_image(Catalog(cache / "images"), Recipe(distribution="debian:12"))
        self.initrd = Path(self.context.home.root) / "tiny.initrd"
        tiny.build_initrd(self.image, self.initrd)
        self.initrd.chmod(0o444)
        context = self.context
        create_bridge(context, "bench", BridgeWish(address="10.91.2.1/24"))
        stack.callback(remove_bridge, context, "bench", force=True)
        for name, uplink in (("up", "tap=up0"), ("flat", "none")):
            create_switch(context, name, SwitchWish(uplink=uplink))
            stack.callback(remove_switch, context, name, force=True)
        run("ip", "address", "add", "10.91.3.1/24", "dev", "up0")
        self.accelerator = choose_accelerator(
            "auto",
            cache_dir=context.home.cache,
            built_in=probe("qemu-system-x86_64", context.home.cache).accelerators,
        ).name
        files = str(self.image.kernel), str(self.initrd)
        self.hand = stack.enter_context(by_hand(*files, context.home.root, self.accelerator))
        self.up = self._guest(stack, "up", [path[1] for path in HOST_PATHS])
        for number, (_, _, address, _) in enumerate(HOST_PATHS):
            configure(self.up, number, address)
        self.one = self._guest(stack, "one", [path[1] for path in GUEST_PATHS])
        self.two = self._guest(stack, "two", [path[2] for path in GUEST_PATHS])
        for number in range(len(GUEST_PATHS)):
            configure(self.one, number, f"10.92.{number}.1/24")
            configure(self.two, number, f"10.92.{number}.2/24")

    def _guest(self, stack: contextlib.ExitStack, name: str, backends: list[Any]) -> tiny.Shell:
        tree = {
            "memory": "192M", "displays": [], "video": {"model": "none"}, "channels": [],
            "disks": [], "nics": [{"backend": backend} for backend in backends],
            "boot": {
                "kernel": str(self.image.kernel), "initrd": str(self.initrd), "cmdline": LINE
            },
        }  # fmt: skip
        create(self.context, name, None, Wish(settings=tree))
        stack.callback(remove, self.context, name, force=True)
        start(self.context, name)
        shell = tiny.Shell(tiny.console(self.context.home.vm(name)))
        stack.callback(shell.close)
        return shell

    def rows(self) -> list[Row]:
        print(f"accelerator: {self.accelerator}; {MIB} MiB by TCP, round trips by ping")
        made = []
        for what, _, _, address in HOST_PATHS:
            made += self._pair(
                what,
                lambda address=address: to_host(self.up, address),
                lambda address=address: round_trip(self.up, address),
            )
        for number, (what, _, _) in enumerate(GUEST_PATHS):
            address = f"10.92.{number}.2"
            made += self._pair(
                f"guest to guest, {what}",
                lambda address=address: to_guest(self.one, self.two, address),
                lambda address=address: round_trip(self.one, address),
            )
        return made

    def _pair(
        self, what: str, stream: Callable[[], Sample], trip: Callable[[], Sample]
    ) -> list[Row]:
        target = "wall <= 1.1" if what.startswith("network (tap") else ""
        by_stream = compare(
            f"{what}: stream", stream, HAND, lambda: to_host(self.hand, "10.91.1.1"),
            rounds=ROUNDS, target=target, with_cpu=False,
        )  # fmt: skip
        by_trip = compare(
            f"{what}: round trip", trip, HAND, lambda: round_trip(self.hand, "10.91.1.1"),
            rounds=ROUNDS, target=target, with_cpu=False,
        )  # fmt: skip
        return [by_stream, by_trip]


def configure(shell: tiny.Shell, number: int, address: str) -> None:
    shell(f"ip link set eth{number} up; ip address add {address} dev eth{number}")


@contextlib.contextmanager
def by_hand(kernel: str, initrd: str, directory: str, accelerator: str) -> Iterator[tiny.Shell]:
    """A QEMU on a TAP, as one types it; the rest of the machine is like wirt's."""
    run("ip", "tuntap", "add", "hand0", "mode", "tap")
    run("ip", "address", "add", "10.91.1.1/24", "dev", "hand0")
    run("ip", "link", "set", "hand0", "up")
    path = f"{directory}/hand.sock"
    process = subprocess.Popen(
        [
            "qemu-system-x86_64", "-M", "q35", "-accel", accelerator, "-m", "192M",
            "-nodefaults", "-no-user-config", "-display", "none",
            "-kernel", kernel, "-initrd", initrd, "-append", LINE,
            "-chardev", f"socket,id=s,path={path},server=on,wait=off", "-serial", "chardev:s",
            "-netdev", "tap,id=n,ifname=hand0,script=no,downscript=no",
            "-device", "virtio-net-pci,netdev=n,romfile=",
        ],
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not os.path.exists(path):
            time.sleep(0.01)
        shell = tiny.Shell(path)
        configure(shell, 0, "10.91.1.9/24")
        yield shell
        shell.close()
    finally:
        process.kill()
        process.wait()


def to_host(shell: tiny.Shell, address: str) -> Sample:
    """Send ``MIB`` to this process; seconds from the connection to its end."""
    with socket.create_server(("0.0.0.0", PORT)) as server:
        sender = threading.Thread(target=send, args=(shell, address))
        sender.start()
        connection, _ = server.accept()
        begun, total = time.perf_counter(), 0
        with connection:
            while data := connection.recv(1 << 18):
                total += len(data)
        wall = time.perf_counter() - begun
        sender.join()
    if total != MIB << 20:
        raise SystemExit(f"{total} bytes came instead of {MIB} MiB")
    return Sample(wall, 0)


def send(shell: tiny.Shell, address: str) -> None:
    shell(f"dd if=/dev/zero bs=1M count={MIB} 2>/dev/null | nc {address} {PORT}", timeout=600)


def to_guest(sender: tiny.Shell, receiver: tiny.Shell, address: str) -> Sample:
    """Send ``MIB`` to the other guest; seconds as the sender sees them."""
    receiver(f"nc -l -p {PORT} < /dev/null > /dev/null 2>&1 & sleep 0.3")
    begun = time.perf_counter()
    send(sender, address)
    return Sample(time.perf_counter() - begun, 0)


def round_trip(shell: tiny.Shell, address: str) -> Sample:
    """The mean of 50 round trips, after one that finds the way."""
    output = shell(f"ping -c 1 -W 5 {address} >/dev/null; ping -c 50 -i 0.02 {address}")
    return Sample(float(output.rpartition("= ")[2].split("/")[1]) / 1000, 0)
