"""Sound, balloon, PCI devices of the host, shared directories and old hacks."""

from __future__ import annotations

import re
from typing import get_args

from wirt.qemu.legacy.draft import Draft
from wirt.qemu.legacy.line import Given
from wirt.qemu.legacy.note import Outcome, Refused
from wirt.qemu.legacy.option import flag, keep, valued
from wirt.qemu.legacy.values import parse
from wirt.spec.hardware import SoundCard

_ALL: tuple[SoundCard, ...] = ("pcspk", "sb16", "adlib", "gus", "cs4231a", "ac97", "es1370", "hda")
"""What ``-soundhw all`` meant."""


def soundhw(draft: Draft, given: Given) -> Outcome | None:
    """Sound cards."""
    if given.value in {"?", "help"}:
        return Outcome(why=f"cards: {', '.join(_ALL)}")
    known = {name: name for name in get_args(SoundCard)}
    for name in _ALL if given.value == "all" else given.value.split(","):
        if name not in known:
            raise Refused(f"there is no sound card {name[:30]!r}", ", ".join(_ALL))
        if name not in draft.sound:
            draft.sound.append(known[name])
    where = draft.facts.audio
    why = f"heard by {where}" if where != "none" else "no sound server here: it plays to nobody"
    return Outcome(today="-audiodev and -device", why=why)


def audiodev(draft: Draft, given: Given) -> Outcome | None:
    """Where sound is heard."""
    if given.value in {"?", "help"}:
        draft.query = ["-audiodev", "help"]
        return None
    values = parse(given.value, first="driver")
    if values.take("id") == "audio0" and len(values.pairs) == 1:
        draft.settings["audio"] = values.take("driver")
        return Outcome("same")
    return keep(draft, given)


def balloon(draft: Draft, given: Given) -> Outcome | None:
    """The balloon."""
    kind = parse(given.value, first="type").take("type")
    if kind not in {"virtio", "none"}:
        raise Refused(f"there is no balloon {kind[:20]!r}", "virtio or none")
    draft.settings["balloon"] = kind == "virtio"
    if kind == "none":
        return Outcome("dropped", why="there is no balloon unless asked for")
    return Outcome(today="-device virtio-balloon-pci")


def pci_device(draft: Draft, given: Given) -> Outcome | None:
    """A PCI device of the host."""
    values = parse(given.value)
    host = host_device(draft, values.take("host"))
    draft.args += ["-device", f"vfio-pci,host={host}"]
    return Outcome(today=f"-device vfio-pci,host={host}")


def host_device(draft: Draft, text: str) -> str:
    """Return the address of a PCI device that is there. Raises Refused."""
    match = re.fullmatch(r"(?:([0-9a-fA-F]{1,4}):)?([0-9a-fA-F]{1,2}):([0-9a-fA-F]{1,2})\.([0-7])",
                         text)  # fmt: skip
    if not match:
        raise Refused(f"host={text[:30]} is no PCI device", "host=BUS:SLOT.FUNCTION, see lspci")
    domain, bus, slot, function = match.groups()
    address = f"{int(domain or '0', 16):04x}:{int(bus, 16):02x}:{int(slot, 16):02x}.{function}"
    if draft.facts.strict and not draft.facts.exists(f"/sys/bus/pci/devices/{address}"):
        raise Refused(f"this host has no PCI device {address}", "see lspci")
    return address


def virtfs(draft: Draft, given: Given) -> Outcome | None:
    """A shared directory."""
    values = parse(given.value, first="fsdriver")
    path = values.take("path")
    if path:
        draft.need(path, "the directory")
    return keep(draft, given)


def global_(draft: Draft, given: Given) -> Outcome | None:
    """A property of all devices of a kind."""
    values = parse(given.value)
    driver, name, value = (values.take(key) for key in ("driver", "property", "value"))
    if driver == "isa-fdc" and name.startswith("bootindex"):
        draft.floppy_boot[name[-1]] = int(value) if value.isdigit() else 0
        return Outcome("same")
    if driver == "cfi.pflash01" and name == "secure":
        draft.firmware["secure"] = True
        return Outcome("same")
    return keep(draft, given)


OPTIONS = (
    valued("soundhw", "0.8", "7.1", "sound cards", soundhw, "-audiodev and -device"),
    valued("audiodev", "4.0", "", "where sound is heard", audiodev),
    valued("audio", "7.1", "", "a sound card and where it is heard", keep),
    valued(
        "balloon",
        "0.11",
        "3.1",
        "memory that the guest can give back",
        balloon,
        "-device virtio-balloon-pci",
    ),
    valued(
        "pcidevice",
        "kvm-80",
        "0.15",
        "a PCI device of the host",
        pci_device,
        "-device vfio-pci,host=",
    ),
    flag("win2k-hack", "0.8", "", "for the installation of Windows 2000", keep),
    valued("virtfs", "0.13", "", "a shared directory (9p)", virtfs),
    valued("virtfs_synth", "1.1", "", "a test of 9p", keep),
    valued("fsdev", "0.13", "", "a directory for a 9p device", keep),
    valued("global", "0.12", "", "a property of all devices of a kind", global_),
)
