"""Bring everything up and down again and again, and count what is left.

``python -m tests.vm.network.cycles 200`` in a network namespace of its own (``unshare -n``).
"""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec

from tests.vm.conftest import scratch_home
from wirt.spec.nic import Switch
from wirt.store.wires import Shape
from wirt.vm.context import Context
from wirt.vm.create import Wish, create
from wirt.vm.network.bridges import BridgeWish, create_bridge, remove_bridge
from wirt.vm.network.cables import create_cable, remove_cable
from wirt.vm.network.nics import plug
from wirt.vm.network.switches import SwitchWish, create_switch, remove_switch
from wirt.vm.network.users import running_wires
from wirt.vm.remove import remove
from wirt.vm.start import start

WARM_UP = 5
MOST_GROWTH_KIB = 4096
"""What allocators and caches may still take after the first cycles."""


def cycle(context) -> None:
    """Switches, a cable, a network of the host, a private one, and a machine on all of them."""
    create_switch(context, "a", SwitchWish())
    create_switch(context, "b", SwitchWish(uplink="tap"))
    create_cable(context, "ab", "a", "b", Shape(delay=1))
    create_bridge(context, "here", BridgeWish())
    create_bridge(context, "private", BridgeWish(private=True))
    nics = [
        {"backend": {"type": "switch", "name": "a", "vlan": 7}},
        {"backend": {"type": "network", "name": "here"}, "rate": {"to_guest": "1M"}},
        {"backend": {"type": "network", "name": "private"}},
        {"backend": {"type": "tap"}, "rate": {"from_guest": "1M"}},
    ]
    tree = {"memory": "32M", "displays": [], "video": {"model": "none"}, "nics": nics}
    create(context, "one", None, Wish(settings=tree, disk_size=1 << 20))
    start(context, "one")
    assert len(list(running_wires(context))) == 4
    plug(context, "one", "nic0", Switch(name="b"))
    remove(context, "one", force=True)
    remove_cable(context, "ab")
    for name in "ab":
        remove_switch(context, name)
    for name in ("here", "private"):
        remove_bridge(context, name)


def left(context) -> dict[str, object]:
    """What a cycle could leave, in a form to compare."""
    namespace = os.readlink("/proc/self/ns/net")
    processes = 0
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and os.readlink(f"/proc/{entry}/ns/net") == namespace:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    processes += bool(file.read())

    def said(*words: str) -> str:
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout

    home = context.home
    return {
        "processes": processes,
        "threads": len(reapers()),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "namespaces kept by a mount": len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "interfaces": len(said("ip", "-br", "link").splitlines()),
        "rules": said("nft", "list", "ruleset").count("chain"),
        "files": _count(home.root),
        "memory files": _count(home.memory),
    }


def reapers() -> list[threading.Thread]:
    """The threads that wait for the ends of detached children."""
    return [one for one in threading.enumerate() if one.name.startswith("reap ")]


def settled(context, wanted: dict[str, object]) -> dict[str, object]:
    """Return what is left when that is as ``wanted``, or five minutes later."""
    deadline = time.monotonic() + 300
    while (now := left(context)) != wanted and time.monotonic() < deadline:
        time.sleep(0.05)  # the last of the threads that reap children
    return now


def _count(directory: str) -> int:
    return sum(len(files) + len(folders) for _, folders, files in os.walk(directory))


def resident() -> int:
    """Return how many KiB of memory this process holds."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def main() -> int:
    count = int(sys.argv[1])
    with scratch_home() as scratch:
        # The sockets inside it, where no other home's are counted.
        home = msgspec.structs.replace(scratch.home, runtime_base=f"{scratch.home.root}/run")
        context = Context(home)
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        for _ in range(WARM_UP):
            cycle(context)
        for thread in reapers():
            thread.join(300)
        before, began = left(context), resident()
        for number in range(count):
            cycle(context)
            now = settled(context, before)
            assert now == before, (number, before, now)
        grown = resident() - began
    print(f"{count} cycles left nothing: {before}; memory of the caller grew by {grown} KiB")
    assert grown < MOST_GROWTH_KIB, grown
    return 0


if __name__ == "__main__":
    sys.exit(main())
