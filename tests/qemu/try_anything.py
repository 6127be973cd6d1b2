"""Start machines that nobody thought of, to find what QEMU refuses and wirt should have.

    python -m tests.qemu.try_anything [BINARY [COUNT [SEED]]]

Prints how many descriptions were contradictory, refused by wirt, and started; and for each
that QEMU refused its words. Not part of the suite: 400 take about a minute.
"""

import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import HealthCheck, Phase, given, seed, settings
from msgspec.structs import replace

from tests.qemu import anything, live, machines
from wirt.errors import WirtError
from wirt.host.qemu_probe import probe
from wirt.qapi.capabilities import Capabilities
from wirt.qemu.compile import arguments
from wirt.qemu.render import argv
from wirt.spec import toml
from wirt.spec.console import Console, Null, Pty, Window
from wirt.spec.hardware import Cpu, Firmware
from wirt.spec.machine import Machine

HERE = (Console, Null, Pty)
"""Backends that need no file and no peer."""


def main(binary: str, count: int, number: int) -> None:
    results: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as cache:
        capabilities = probe(binary, cache)

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(anything.machines())
    def attempt(tree: dict[str, Any]) -> None:
        machine, _ = toml.from_tree(tree)
        if machine is None:
            results["contradictory"] += 1
        else:
            with tempfile.TemporaryDirectory(prefix="wirt-q") as base:
                results[outcome(startable(machine), capabilities, binary, Path(base))] += 1

    attempt()
    for result, times in results.most_common():
        print(f"{times:6} {result}")


def startable(machine: Machine) -> Machine:
    """Return the machine without what depends on other things of the host."""
    change = msgspec.structs.replace
    disks = tuple(
        change(disk, image=disk.image and f"{index}.img")
        for index, disk in enumerate(machine.disks)
    )
    return change(
        machine,
        disks=disks,
        nics=tuple(change(nic, backend=type(nic.backend)()) for nic in machine.nics),
        serials=tuple(port for port in machine.serials if isinstance(port.backend, HERE)),
        channels=tuple(change(c, backend=type(c.backend)()) for c in machine.channels),
        displays=tuple(
            type(display)()
            for display in machine.displays
            if not isinstance(display, Window) and display.listen == "unix"
        ),
        cpu=Cpu(model="max"),
        usb=change(
            machine.usb,
            devices=tuple(d for d in machine.usb.devices if d.kind not in {"host", "braille"}),
        ),
        firmware=Firmware(),
        boot=change(machine.boot, kernel="", initrd="", cmdline=""),
        tcg_cache=64 << 20,
    )


def outcome(machine: Machine, capabilities: Capabilities, binary: str, base: Path) -> str:
    overlays = {index: str(base / f"overlay{index}") for index in range(len(machine.disks))}
    place = machines.Place(str(base / "vm"), str(base), facts={"overlays": overlays})
    facts = machines.runtime("any", place)
    try:
        arguments(machine, facts, capabilities)
    except WirtError as error:
        return "refused by wirt: " + re.sub(r"'[^']*'", "…", error.message)
    with live.placeholders(machine, facts, base) as runtime:
        words = argv(binary, arguments(machine, replace(runtime), capabilities))
        try:
            with live.answering(words, runtime, base):
                return "started"
        except AssertionError as error:
            return f"REFUSED BY QEMU: {error}"


if __name__ == "__main__":
    given_words = [*sys.argv[1:], *("qemu-system-x86_64", "400", "1")[len(sys.argv) - 1 :]]
    main(given_words[0], int(given_words[1]), int(given_words[2]))
