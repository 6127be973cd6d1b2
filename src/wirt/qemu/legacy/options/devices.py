"""``-device``: what the spec knows becomes part of it; the rest goes to QEMU as it is."""

from __future__ import annotations

from collections.abc import Callable

from wirt.qemu.legacy import plugged
from wirt.qemu.legacy.draft import Draft
from wirt.qemu.legacy.line import Given
from wirt.qemu.legacy.note import Outcome, Refused
from wirt.qemu.legacy.option import valued
from wirt.qemu.legacy.options.misc import host_device
from wirt.qemu.legacy.values import flatten, join, parse, parse_json

_RENAMED = {
    "virtio-blk": "virtio-blk-pci", "virtio-net": "virtio-net-pci",
    "virtio-balloon": "virtio-balloon-pci", "virtio-serial": "virtio-serial-pci",
    "lsi": "lsi53c895a", "ich9-ahci-old": "ich9-ahci", "pvpanic-isa": "pvpanic",
    "kvm-pci-assign": "pci-assign",
}  # fmt: skip
_SILENT = {"usb-audio", "AC97", "ES1370", "sb16", "adlib", "gus", "cs4231a", "hda-duplex",
           "hda-micro", "hda-output"}  # fmt: skip
"""Sound cards, which must name an audio backend since QEMU 8.2."""

Parts = dict[str, str]
Handler = Callable[[Draft, Parts, int], bool]


def device(draft: Draft, given: Given) -> Outcome | None:
    """A device: kept for later, when all that it may name is known."""
    if given.value in {"?", "help"} or given.value.endswith((",?", ",help")):
        draft.query = ["-device", given.value.replace("?", "help")]
        return None
    draft.devices.append(given)
    return Outcome("same")


def plug(draft: Draft, given: Given) -> Outcome:
    """Give a device its place in the machine."""
    if given.value.startswith("{"):
        parts = dict(flatten(parse_json(given.value)))
    else:
        parts = dict(parse(given.value, first="driver"))
    name = parts.get("driver", "")
    if not name:
        raise Refused("a -device needs the name of a driver")
    parts["driver"] = _RENAMED.get(name, name)
    special = _SPECIAL.get(parts["driver"])
    if special:
        return special(draft, parts)
    handler = plugged.HANDLERS.get(parts["driver"])
    if handler and handler(draft, dict(parts), given.position):
        same = parts["driver"] == name and not name.startswith(("ide-drive", "scsi-disk"))
        return Outcome("same" if same else "translated", today=f"-device {parts['driver']}")
    if draft.facts.strict and not draft.capabilities.has_device(parts["driver"]):
        raise Refused(f"this QEMU has no device {parts['driver'][:40]}", "-device help lists them")
    return _pass(draft, parts, given, changed=parts["driver"] != name)


def _pass(draft: Draft, parts: Parts, given: Given, *, changed: bool) -> Outcome:
    plugged.keep_what_it_names(draft, parts)
    if parts["driver"] in _SILENT and "audiodev" not in parts:
        parts["audiodev"] = "audio0"
        draft.needs_audio = True
        changed = True
    if given.value.startswith("{") and not changed:
        draft.args += given.words
        return Outcome("same")
    bus = parts.get("bus", "")
    if bus in {"usb-bus.0", "usb.0"} and draft.has_usb:
        parts["bus"] = "usb.0"
    driver = parts.pop("driver")
    options = [join(list(parts.items()))] if parts else []
    draft.args += ["-device", ",".join([driver, *options])]
    return Outcome("translated" if changed else "same", today=f"-device {driver}")


def _assigned(draft: Draft, parts: Parts) -> Outcome:
    address = host_device(draft, parts.get("host", ""))
    draft.args += ["-device", f"vfio-pci,host={address}"]
    return Outcome(today=f"-device vfio-pci,host={address}", why="pci-assign was replaced by VFIO")


def _test_device(draft: Draft, parts: Parts) -> Outcome:
    """kvm-unit-tests: its device wrote what the tests say to a character device."""
    plugged.keep_what_it_names(draft, parts)
    draft.args += ["-device", "pc-testdev"]
    if "chardev" in parts:
        draft.args += ["-device", f"isa-debugcon,iobase=0xf1,chardev={parts['chardev']}"]
    return Outcome(today="-device pc-testdev -device isa-debugcon,iobase=0xf1")


_SPECIAL: dict[str, Callable[[Draft, Parts], Outcome]] = {
    "pci-assign": _assigned,
    "testdev": _test_device,
}

OPTIONS = (valued("device", "0.12", "", "a device", device),)
