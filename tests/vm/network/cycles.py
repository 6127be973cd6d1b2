"""Bring everything up and down again and again, and count what is left.

``python -m tests.vm.network.cycles 200`` in a network namespace of its own (``unshare -n``).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

from tests.vm.conftest import scratch_home
from wirt.spec.nic import Switch
from wirt.store.wires import Shape
from wirt.vm.create import Wish, create
from wirt.vm.network.bridges import BridgeWish, create_bridge, remove_bridge
from wirt.vm.network.cables import create_cable, remove_cable
from wirt.vm.network.nics import plug
from wirt.vm.network.switches import SwitchWish, create_switch, remove_switch
from wirt.vm.network.users import running_wires
from wirt.vm.remove import remove
from wirt.vm.start import start


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

    return {
        "processes": processes,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "interfaces": len(said("ip", "-br", "link").splitlines()),
        "rules": said("nft", "list", "ruleset").count("chain"),
        "files": sum(len(files) + len(folders) for _, folders, files in os.walk(context.home.root)),
    }


def main() -> int:
    with scratch_home() as context:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        cycle(context)
        before = left(context)
        for number in range(int(sys.argv[1])):
            cycle(context)
            now = left(context)
            assert now == before, (number, before, now)
    print(f"{sys.argv[1]} cycles left nothing: {before}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
