"""TCP throughput and round trip of every backend, against a TAP of a QEMU typed by hand.

Four small guests: one by hand on a TAP, one with a card on each path to the host, two with a
card on each path to one another. All of it in a network namespace of its own (needs root).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from bench.pairs import Row, Sample, compare
from wirt.catalog.build import build_image
from wirt.catalog.catalog import Catalog
from wirt.catalog.recipe import Recipe
from wirt.host.accel import choose_accelerator
from wirt.host.qemu_probe import probe
from wirt.qemu.machine import cpu_model
from wirt.store.layout import home_at
from wirt.store.wires import Shape
from wirt.vm.context import Context
from wirt.vm.create import Wish, create
from wirt.vm.description import load_spec
from wirt.vm.network.bridges import BridgeWish, create_bridge, remove_bridge
from wirt.vm.network.cables import create_cable, remove_cable
from wirt.vm.network.switches import SwitchWish, create_switch, remove_switch
from wirt.vm.remove import remove
from wirt.vm.start import start

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "guests"))
import tiny

MIB = int(os.environ.get("WIRT_BENCH_MIB", "128"))
ROUNDS = int(os.environ.get("WIRT_BENCH_ROUNDS", "5"))
PORT = 5001
TRIPS = 100
WAIT = 600.0
"""Seconds for one transfer: a guest of a busy host may take long, but not for ever."""
CLONE_NEWNET = 0x40000000
LINE = "console=ttyS0 no_timer_check mitigations=off quiet rdinit=/init"
MEMORY = "192M"
HAND = "a TAP, QEMU's line typed by hand"
HAND_HOST, HAND_GUEST = "10.91.1.1", "10.91.1.9/24"
CACHE = Path(os.environ.get("WIRT_TEST_CACHE") or f"/var/tmp/wirt-tests-{os.geteuid()}")
FACTS = str(CACHE / "facts")
ACCELERATOR = choose_accelerator(
    "auto", cache_dir=FACTS, built_in=probe("qemu-system-x86_64", FACTS).accelerators
).name
TITLE = f"Networks under {ACCELERATOR}: seconds for {MIB} MiB by TCP, and for {TRIPS} round trips"


@dataclass(frozen=True)
class ToHost:
    """A way from a guest to this host: backend, the guest's address and the host's."""

    what: str
    backend: dict[str, Any]
    guest: str
    host: str
    target: str = ""


@dataclass(frozen=True)
class Between:
    """A way from one guest to another: the backends of both."""

    what: str
    one: dict[str, Any]
    two: dict[str, Any]


@dataclass
class Bench:
    """The place where all runs, and the shells of its guests."""

    context: Context
    kernel: str
    initrd: str
    shells: dict[str, tiny.Shell] = field(default_factory=dict)


def rows() -> list[Row]:
    signal.signal(signal.SIGTERM, _end)
    with ExitStack() as stack:
        stack.enter_context(own_network())
        root = stack.enter_context(directory())
        bench = Bench(Context(home_at(root)), *guest_files(Path(root)))
        to_host, between = prepare(bench, root, stack)
        return [
            *(row for path in to_host for row in measure_to_host(bench, path)),
            *(
                row
                for number, path in enumerate(between)
                for row in measure_between(bench, path, number)
            ),
        ]


def _end(_signal: int, _frame: object) -> NoReturn:
    raise SystemExit("ended by SIGTERM")


def run(*words: str) -> None:
    subprocess.run(words, check=True)


@contextmanager
def own_network() -> Iterator[None]:
    """This process, and what it starts, in a network namespace of its own."""
    libc = ctypes.CDLL(None)
    before = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise SystemExit("this bench needs root: sudo make bench")
    try:
        run("ip", "link", "set", "lo", "up")
        run("ip", "route", "add", "224.0.0.0/4", "dev", "lo")
        yield
    finally:
        libc.setns(before, CLONE_NEWNET)
        os.close(before)


@contextmanager
def directory() -> Iterator[str]:
    """A directory that the users of all machines may pass."""
    root = tempfile.mkdtemp(prefix="wirt-bench-", dir="/var/tmp")
    os.chmod(root, 0o711)
    try:
        yield root
    finally:
        shutil.rmtree(root)


def guest_files(root: Path) -> tuple[str, str]:
    """Return kernel and initrd of the small guest."""
    CACHE.mkdir(mode=0o711, exist_ok=True)
    image = build_image(Catalog(CACHE / "images"), Recipe(distribution="debian:12"))
    initrd = root / "tiny.initrd"
    tiny.build_initrd(image, initrd)
    initrd.chmod(0o444)
    return str(image.kernel), str(initrd)


def prepare(
    bench: Bench, root: str, stack: ExitStack
) -> tuple[tuple[ToHost, ...], tuple[Between, ...]]:
    """Make wires and guests. Return the ways between them, in the order of their cards."""
    make_wires(bench.context, stack)
    to_host, between = ways_to_host(stack), ways_between(Path(root), stack)
    bench.shells["hand"] = stack.enter_context(by_hand(bench, root))
    add_guest(bench, stack, "up", [way.backend for way in to_host])
    add_guest(bench, stack, "one", [way.one for way in between])
    add_guest(bench, stack, "two", [way.two for way in between])
    for number, way in enumerate(to_host):
        configure(bench.shells["up"], number, way.guest)
    for number in range(len(between)):
        configure(bench.shells["one"], number, f"10.92.{number}.1/24")
        configure(bench.shells["two"], number, f"10.92.{number}.2/24")
    return to_host, between


def make_wires(context: Context, stack: ExitStack) -> None:
    create_bridge(context, "bench", BridgeWish(address="10.91.2.1/24"))
    stack.callback(remove_bridge, context, "bench", force=True)
    for name, uplink in (("up", "tap=up0"), ("flat", "none"), ("left", "none"), ("right", "none")):
        create_switch(context, name, SwitchWish(uplink=uplink))
        stack.callback(remove_switch, context, name, force=True)
    run("ip", "address", "add", "10.91.3.1/24", "dev", "up0")
    create_cable(context, "between", "left", "right", Shape())
    stack.callback(remove_cable, context, "between")


def ways_to_host(stack: ExitStack) -> tuple[ToHost, ...]:
    add_tap(stack, "tap0", "10.91.5.1/24")
    network, switch = {"type": "network", "name": "bench"}, {"type": "switch", "name": "up"}
    tap = {"type": "tap", "interface": "tap0"}
    ways = [
        ToHost("tap: wirt's own path", tap, "10.91.5.9/24", "10.91.5.1", "wall <= 1.1"),
        ToHost("network (tap on a bridge)", network, "10.91.2.9/24", "10.91.2.1"),
        ToHost("switch with a tap", switch, "10.91.3.9/24", "10.91.3.1"),
        ToHost("user", {"type": "user"}, "10.0.2.15/24", "10.0.2.2"),
    ]
    if shutil.which("passt"):
        # passt gives the guest the address of this host, and is this host at its router's.
        run("ip", "link", "add", "copied0", "type", "veth", "peer", "name", "copied1")
        stack.callback(run, "ip", "link", "delete", "copied0")
        run("ip", "address", "add", "10.91.4.9/24", "dev", "copied0")
        run("ip", "link", "set", "copied1", "up")
        run("ip", "link", "set", "copied0", "up")
        run("ip", "route", "add", "default", "via", "10.91.4.1", "dev", "copied0")
        ways.append(ToHost("passt", {"type": "passt"}, "10.91.4.9/24", "10.91.4.1"))
    return tuple(ways)


def add_tap(stack: ExitStack, name: str, address: str) -> None:
    run("ip", "tuntap", "add", name, "mode", "tap")
    stack.callback(run, "ip", "link", "delete", name)
    run("ip", "address", "add", address, "dev", name)
    run("ip", "link", "set", name, "up")


def ways_between(root: Path, stack: ExitStack) -> tuple[Between, ...]:
    shared = root / "sockets"
    shared.mkdir()
    shared.chmod(0o777)
    foreign = stack.enter_context(foreign_switch(shared / "vde"))

    def both(what: str, **backend: object) -> Between:
        return Between(what, backend, backend)

    def two(what: str, kind: str, one: dict[str, Any], other: dict[str, Any]) -> Between:
        return Between(what, {"type": kind, **one}, {"type": kind, **other})

    at, sock = "127.0.0.1", str(shared)
    return (
        both("network (two taps)", type="network", name="bench"),
        both("switch", type="switch", name="flat"),
        two("two switches+cable", "switch", {"name": "left"}, {"name": "right"}),
        both("vde (QEMU's own)", type="vde", path=foreign),
        two("socket, TCP", "socket", {"listen": f"{at}:7001"}, {"connect": f"{at}:7001"}),
        both("socket, multicast", type="socket", multicast="230.0.0.1:7002", local_address=at),
        two("socket, UDP", "socket", *(
            {"udp": f"{at}:{theirs}", "local_address": f"{at}:{ours}"}
            for ours, theirs in ((7003, 7004), (7004, 7003))
        )),
        two("stream, TCP", "stream",
            {"address": f"{at}:7005", "server": True}, {"address": f"{at}:7005"}),
        two("stream, unix", "stream",
            {"path": f"{sock}/stream", "server": True}, {"path": f"{sock}/stream"}),
        two("dgram, UDP", "dgram", *(
            {"local": f"{at}:{ours}", "remote": f"{at}:{theirs}"}
            for ours, theirs in ((7006, 7007), (7007, 7006))
        )),
        two("dgram, unix", "dgram", *(
            {"local_path": f"{sock}/{ours}", "remote_path": f"{sock}/{theirs}"}
            for ours, theirs in (("a", "b"), ("b", "a"))
        )),
    )  # fmt: skip


@contextmanager
def foreign_switch(path: Path) -> Iterator[str]:
    """A switch that somebody else runs, open to all users."""
    process = subprocess.Popen(
        ["vde_switch", "--sock", str(path), "--mode", "0666", "--dirmode", "0777"],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        await_file(process, path / "ctl")
        yield str(path)
    finally:
        process.kill()
        process.communicate()


def await_file(process: subprocess.Popen[bytes], path: Path) -> None:
    deadline = time.monotonic() + WAIT
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{process.args!r} made no {path}")
        time.sleep(0.01)


def add_guest(bench: Bench, stack: ExitStack, name: str, backends: list[Any]) -> None:
    context = bench.context
    tree = {
        "memory": MEMORY, "displays": [], "video": {"model": "none"}, "channels": [],
        "disks": [], "nics": [{"backend": backend} for backend in backends],
        "boot": {"kernel": bench.kernel, "initrd": bench.initrd, "cmdline": LINE},
    }  # fmt: skip
    create(context, name, None, Wish(settings=tree))
    stack.callback(remove, context, name, force=True)
    before = os.umask(0)  # each QEMU is another user, and both use the unix sockets
    try:
        start(context, name)
    finally:
        os.umask(before)
    bench.shells[name] = tiny.Shell(tiny.console(context.home.vm(name)))
    stack.callback(bench.shells[name].close)


def configure(shell: tiny.Shell, number: int, address: str) -> None:
    shell(f"ip link set eth{number} up; ip address add {address} dev eth{number}")


@contextmanager
def by_hand(bench: Bench, root: str) -> Iterator[tiny.Shell]:
    """A QEMU on a TAP, as one types it; the rest of the machine is like wirt's."""
    create(bench.context, "model", None, Wish(settings={"disks": []}))
    cpu = cpu_model(load_spec(bench.context.home.vm("model")), ACCELERATOR)
    remove(bench.context, "model")
    path = Path(root, "hand.sock")
    with ExitStack() as stack:
        add_tap(stack, "hand0", f"{HAND_HOST}/24")
        process = subprocess.Popen(
            [
                "qemu-system-x86_64", "-M", "q35", "-accel", ACCELERATOR, "-cpu", cpu,
                "-m", MEMORY, "-nodefaults", "-no-user-config", "-display", "none",
                "-kernel", bench.kernel, "-initrd", bench.initrd, "-append", LINE,
                "-chardev", f"socket,id=s,path={path},server=on,wait=off",
                "-serial", "chardev:s",
                "-netdev", "tap,id=n,ifname=hand0,script=no,downscript=no",
                "-device", "virtio-net-pci,netdev=n,romfile=",
            ],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        stack.callback(process.wait)
        stack.callback(process.kill)
        await_file(process, path)
        shell = tiny.Shell(str(path))
        stack.callback(shell.close)
        configure(shell, 0, HAND_GUEST)
        yield shell


def measure_to_host(bench: Bench, way: ToHost) -> list[Row]:
    shell = bench.shells["up"]
    return [
        pair(bench, f"{way.what}: stream", stream_to_host, shell, way.host, way.target),
        pair(bench, f"{way.what}: round trip", trip_to_host, shell, way.host, way.target),
    ]


def pair(
    bench: Bench,
    what: str,
    act: Callable[[tiny.Shell, str], Sample],
    shell: tiny.Shell,
    address: str,
    target: str = "",
) -> Row:
    """Do the same from a guest of wirt's and from the one by hand."""
    return against_hand(bench, what, lambda: act(shell, address), act, target)


def against_hand(
    bench: Bench,
    what: str,
    ours: Callable[[], Sample],
    theirs: Callable[[tiny.Shell, str], Sample],
    target: str = "",
) -> Row:
    hand = bench.shells["hand"]
    print(what, file=sys.stderr)
    return compare(
        what, ours, HAND, lambda: theirs(hand, HAND_HOST),
        rounds=ROUNDS, target=target, with_cpu=False,
    )  # fmt: skip


def measure_between(bench: Bench, way: Between, number: int) -> list[Row]:
    one, two, address = bench.shells["one"], bench.shells["two"], f"10.92.{number}.2"
    what = f"guests by {way.what}"
    return [
        against_hand(
            bench, f"{what}: stream", lambda: stream_to_guest(one, two, address), stream_to_host
        ),
        pair(bench, f"{what}: round trip", ping, one, address),
    ]


def stream_to_host(shell: tiny.Shell, address: str) -> Sample:
    """Send ``MIB`` to this process; seconds from the connection to its end."""
    with connection_from(shell, zeroes(address)) as connection:
        begun, total = time.perf_counter(), 0
        while data := connection.recv(1 << 18):
            total += len(data)
        wall = time.perf_counter() - begun
    if total != MIB << 20:
        raise SystemExit(f"{total} bytes came instead of {MIB} MiB")
    return Sample(wall, 0)


def zeroes(address: str) -> str:
    """Return what sends ``MIB``: dd writes to the socket itself, nc would copy in small bits."""
    return f"nc {address} {PORT} -e dd if=/dev/zero bs=1M count={MIB} 2>/dev/null"


@contextmanager
def connection_from(shell: tiny.Shell, command: str) -> Iterator[socket.socket]:
    """Yield the connection that a command of a guest makes to this process."""
    with socket.create_server(("0.0.0.0", PORT)) as server:
        server.settimeout(WAIT)
        client = threading.Thread(target=shell, args=(command,), kwargs={"timeout": WAIT})
        client.start()
        try:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(WAIT)
                yield connection
        finally:
            client.join()


def trip_to_host(shell: tiny.Shell, address: str) -> Sample:
    """Seconds (by their median) for bytes to the guest that, through its TCP, come back."""
    echo = f"rm -f /tmp/echo; mkfifo /tmp/echo; nc {address} {PORT} </tmp/echo | cat >/tmp/echo"
    trips = []
    with connection_from(shell, echo) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(TRIPS):
            begun = time.perf_counter()
            connection.sendall(b"x")
            if not connection.recv(1):
                raise SystemExit("the guest ended the connection")
            trips.append(time.perf_counter() - begun)
    return Sample(TRIPS * statistics.median(trips), 0)


def stream_to_guest(sender: tiny.Shell, receiver: tiny.Shell, address: str) -> Sample:
    """Send ``MIB`` to the other guest; seconds until it has all of it."""
    receive = f"nc -l -p {PORT} -e dd of=/dev/null bs=1M; touch /tmp/end"
    # A session of its own: the shell's terminal is none of its business.
    receiver(f"rm -f /tmp/end; setsid sh -c '{receive}' </dev/null >/dev/null 2>&1 &")
    listens = f":{PORT:04X} 0*:0000 0A"  # in hexadecimal: proc(5), net/tcp
    receiver(f"until grep -q '{listens}' /proc/net/tcp*; do usleep 50000; done", timeout=WAIT)
    begun = time.perf_counter()
    sender(zeroes(address), timeout=WAIT)
    receiver("until [ -e /tmp/end ]; do usleep 5000; done", timeout=WAIT)
    return Sample(time.perf_counter() - begun, 0)


def ping(shell: tiny.Shell, address: str) -> Sample:
    """Seconds (by their mean) for round trips, after one that finds the way."""
    shell(f"for i in $(seq 20); do ping -c 1 -W 2 {address} && exit 0; done; exit 1", timeout=WAIT)
    output = shell(f"ping -c {TRIPS} -i 0.01 -W 5 {address}", timeout=WAIT)
    mean = float(output.rpartition("= ")[2].split("/")[1]) / 1000
    return Sample(TRIPS * mean, 0)
