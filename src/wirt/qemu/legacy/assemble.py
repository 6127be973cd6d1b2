"""From a draft to a machine, with the defaults that lines of old left unsaid."""

from __future__ import annotations

import os
import re
from typing import Any

from wirt.qapi.value import QapiObject
from wirt.qemu.boot import DEFAULT_ORDER
from wirt.qemu.legacy.disks import BY_KIND, disks, replace_ids
from wirt.qemu.legacy.draft import Draft, Node
from wirt.qemu.legacy.memory import numa_nodes, take_memory
from wirt.qemu.legacy.nets import nics
from wirt.qemu.legacy.options.chardevs import from_chardev, words_of
from wirt.qemu.legacy.options.nodes import resolve
from wirt.qemu.legacy.screens import displays, ports
from wirt.qemu.legacy.values import join
from wirt.spec.console import Video
from wirt.spec.hardware import (
    Actions,
    Boot,
    Cpu,
    Firmware,
    Qemu,
    Rtc,
    Usb,
    Watchdog,
)
from wirt.spec.machine import Machine
from wirt.spec.nic import Tap
from wirt.spec.setting import NAME_PATTERN
from wirt.units import MIB

OLD_MEMORY = 128 * MIB
OLD_CPU = "qemu64"
_UEFI = ("uefi-code", "uefi-variables")
_UHCI_PORTS = 2


def assemble(draft: Draft) -> tuple[Machine, dict[str, QapiObject]]:
    """Return the machine, and what QEMU is told of its TAPs. Raises Refused."""
    _flash_chips(draft)
    _floppy_places(draft)
    made_disks = replace_ids(disks(draft))
    fields = dict(draft.settings)
    _names(fields, draft)
    cards, uplinks = nics(draft)
    shown = displays(draft)
    serials, parallels, monitors = ports(draft, shown)
    if fields.pop("speaker", False) and "pcspk" not in draft.sound:
        draft.sound.append("pcspk")
    fields.setdefault("memory", OLD_MEMORY)
    fields.setdefault("machine_type", "pc")
    fields["machine_type"] += "".join(f",{k}={v}" for k, v in draft.board_options.items())
    fields.setdefault("video", _default_card(draft))
    for key in ("rng", "balloon", "vmgenid", "panic_notifier"):
        fields.setdefault(key, False)
    if "q35" in fields["machine_type"]:
        fields["hotplug"] = any(name.startswith("port") for name in draft.ports)
    take_memory(draft, fields)
    fields["numa"] = numa_nodes(draft, fields["memory"])
    _take_entropy(draft, fields)
    fields["cpu"] = _cpu(draft)
    fields["firmware"] = _firmware(draft)
    fields["boot"] = _boot(draft)
    fields["actions"] = Actions(**draft.actions)
    fields["rtc"] = Rtc(**draft.rtc)
    fields["watchdog"] = Watchdog(**draft.watchdog) if "model" in draft.watchdog else None
    fields["usb"] = _usb(fields, draft)
    if draft.sound or draft.needs_audio:
        fields.setdefault("audio", draft.facts.audio)
    if draft.needs_audio and not draft.sound:
        draft.early += ["-audiodev", f"driver={draft.facts.audio},id=audio0"]
    return Machine(
        **fields, disks=made_disks, nics=cards, displays=shown, serials=serials,
        parallels=parallels, monitors=monitors, channels=tuple(draft.channels),
        sound=tuple(draft.sound), qemu=Qemu(args=_words(draft)),
    ), _used(uplinks, cards)  # fmt: skip


def _used(uplinks: dict[str, QapiObject], cards: Any) -> dict[str, QapiObject]:
    return uplinks if any(isinstance(card.backend, Tap) for card in cards) else {}


def _floppy_places(draft: Draft) -> None:
    for index in draft.floppy_boot.values():
        if index >= BY_KIND:
            draft.boot_places[index // BY_KIND - 1] = "floppy"


def _names(fields: dict[str, Any], draft: Draft) -> None:
    """A machine's name is also one of a directory; a window's title may be any."""
    title = fields.pop("title", "")
    base = title or _stem(draft) or draft.program
    if re.match(NAME_PATTERN, base):
        fields["name"] = base
        return
    fields["name"] = re.sub(r"[^A-Za-z0-9._-]+", "-", base).strip("-._")[:60] or "machine"
    fields["title"] = re.sub(r"[\x00-\x1f\x7f]", "?", title)


def _stem(draft: Draft) -> str:
    first = next((drive.file for drive in draft.drives if drive.media != "cdrom"), "")
    stem = os.path.basename(first).partition(".")[0]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:60]


def _take_entropy(draft: Draft, fields: dict[str, Any]) -> None:
    """The source of virtio-rng is made with the device."""
    source = draft.objects.get("entropy")
    if fields.get("rng") and source is not None:
        source.used = True


def _cpu(draft: Draft) -> Cpu:
    fields = {"model": OLD_CPU, **draft.cpu}
    fields["model"] = ",".join([fields["model"], *draft.cpu_features])
    return Cpu(**fields)


def _default_card(draft: Draft) -> Video:
    if not draft.defaults:
        return Video("none")
    return Video("std" if draft.facts.modern else "cirrus")


def _flash_chips(draft: Draft) -> None:
    """Nodes that the board shows as flash chips are disks on a bus of their own."""
    for place in ("pflash0", "pflash1"):
        name = draft.firmware.get(place, "")
        if not name or name in _UEFI:
            continue
        drive = resolve(draft, name)
        if drive is None:
            draft.args += ["-machine", f"{place}={name}"]
            continue
        drive.interface = "pflash"
        draft.drives.append(drive)


def _firmware(draft: Draft) -> Firmware:
    said = draft.firmware
    nodes = (said.get("pflash0", ""), said.get("pflash1", ""))
    if nodes == _UEFI and all(name in draft.nodes for name in nodes):
        for name in _UEFI:
            draft.nodes[name].used = draft.nodes[f"{name}-file"].used = True
        return Firmware("uefi", secure_boot=bool(said.get("secure")))
    if said.get("secure"):
        draft.args += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
    return Firmware(code=draft.facts.own_path(said.get("code", "")))


def _boot(draft: Draft) -> Boot:
    fields = dict(draft.boot)
    kernel = fields.get("kernel", "")
    if not kernel and (fields.get("initrd") or fields.get("cmdline")):
        draft.warnings.append("-initrd and -append need -kernel, and do nothing")
        fields.pop("initrd", None)
        fields.pop("cmdline", None)
    initrd = fields.get("initrd", "")
    if "," in initrd or " " in initrd:  # modules of a multiboot kernel
        draft.args += ["-initrd", fields.pop("initrd")]
    for key in ("kernel", "initrd"):
        if key in fields:
            fields[key] = draft.facts.own_path(fields[key])
    fields["order"] = tuple(fields.get("order", ())) or _order_of_places(draft)
    fields["once"] = tuple(fields.get("once", ()))
    return Boot(**fields)


def _order_of_places(draft: Draft) -> Any:
    """Return the order that boot indexes given by kind tell; places in between stay."""
    places = draft.boot_places
    if all(DEFAULT_ORDER[place : place + 1] == (kind,) for place, kind in places.items()):
        return ()
    unused = [kind for kind in (*DEFAULT_ORDER, "network") if kind not in places.values()]
    return tuple(places.get(place) or unused.pop() for place in range(max(places) + 1))


def _usb(fields: dict[str, Any], draft: Draft) -> Usb:
    kind = fields.pop("usb_controller", "")
    if not kind:
        needed = len(draft.usb) + sum(drive.interface == "usb" for drive in draft.drives)
        kind = "uhci" if draft.has_usb else "none"
        if kind == "uhci" and needed > _UHCI_PORTS:
            kind = "xhci"
            draft.warnings.append(
                "a USB 1 controller has two ports: the guest gets a USB 3 controller for more"
            )
    return Usb(kind, tuple(draft.usb))


def _words_of(draft: Draft, node: Node) -> tuple[str, ...]:
    """Return the words of an object; the network that a filter names has another name now."""
    netdev = node.parts.get("netdev", "")
    if netdev not in draft.renamed:
        return node.words
    parts = {**node.parts, "netdev": draft.renamed[netdev]}
    return (node.words[0], join(list(parts.items())))


def _words(draft: Draft) -> tuple[str, ...]:
    """Return the words for QEMU: what is named first, then what names it."""
    early: list[str] = []
    for name, values in draft.chardevs.items():
        early += ["-chardev", f"{words_of(from_chardev(values))},id={name}"]
    for node in [*draft.objects.values(), *draft.nodes.values()]:
        if not node.used:
            early += _words_of(draft, node)
    return (*early, *draft.early, *draft.args)
