"""What ``info`` says of one image, as JSON members and as text."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from wirt.cli.kvm_img.failure import Failure
from wirt.cli.kvm_img.json_text import outline
from wirt.cli.kvm_img.opening import Opened, full_backing_name
from wirt.cli.kvm_img.sizes import human_size
from wirt.image.base import HasSnapshots, SnapshotInfo

_WITHOUT_DETAILS = frozenset({"parallels", "bochs", "cloop"})
"""Formats of which QEMU tells neither cluster size nor whether they are dirty."""


def describe(opened: Opened) -> dict[str, Any]:
    """Return the members of the JSON object for one image."""
    info = opened.image.info()
    layer: dict[str, Any] = {
        "filename": opened.name,
        "format": opened.format,
        "virtual-size": info.virtual_size,
        "actual-size": info.allocated_size,
    }
    if opened.format not in _WITHOUT_DETAILS:
        layer["dirty-flag"] = info.dirty
        if info.cluster_size:
            layer["cluster-size"] = info.cluster_size
    if info.encrypted:
        layer["encrypted"] = True
    if info.backing_name:
        layer["backing-filename"] = info.backing_name
        with suppress(Failure):
            layer["full-backing-filename"] = full_backing_name(opened, info.backing_name)
        if info.backing_format:
            layer["backing-filename-format"] = info.backing_format
    snapshots = opened.image.snapshots() if isinstance(opened.image, HasSnapshots) else ()
    if snapshots:
        layer["snapshots"] = [_snapshot(snapshot) for snapshot in snapshots]
    if info.specific and opened.format in {"qcow2", "vmdk", "luks"}:
        layer["format-specific"] = {"type": opened.format, "data": _specific(info.specific)}
    return layer


def _specific(specific: Mapping[str, object]) -> dict[str, object]:
    return dict(specific)


def _snapshot(snapshot: SnapshotInfo) -> dict[str, object]:
    members: dict[str, object] = {
        "id": snapshot.id,
        "name": snapshot.name,
        "vm-state-size": snapshot.vm_state_size,
        "date-sec": snapshot.date_seconds,
        "date-nsec": snapshot.date_nanoseconds,
        "vm-clock-sec": snapshot.vm_clock_nanoseconds // 10**9,
        "vm-clock-nsec": snapshot.vm_clock_nanoseconds % 10**9,
    }
    if snapshot.icount is not None:
        members["icount"] = snapshot.icount
    return members


def text_of(layer: Mapping[str, Any]) -> str:
    """Return the text for one image, of whole lines."""
    size = layer["virtual-size"]
    lines = [
        f"image: {layer['filename']}",
        f"file format: {layer['format']}",
        f"virtual size: {human_size(size)} ({size} bytes)",
        f"disk size: {human_size(layer['actual-size'])}",
    ]
    if layer.get("encrypted"):
        lines.append("encrypted: yes")
    if "cluster-size" in layer:
        lines.append(f"cluster_size: {layer['cluster-size']}")
    if layer.get("dirty-flag"):
        lines.append("cleanly shut down: no")
    lines += _backing_lines(layer)
    if "snapshots" in layer:
        lines += snapshot_lines([_snapshot_of(item) for item in layer["snapshots"]])
    text = "\n".join(lines) + "\n"
    if "format-specific" in layer:
        text += "Format specific information:\n" + outline(layer["format-specific"]["data"])
    return text


def _backing_lines(layer: Mapping[str, Any]) -> list[str]:
    name = layer.get("backing-filename")
    if name is None:
        return []
    full = layer.get("full-backing-filename")
    more = "" if full == name else f" (actual path: {full})"
    if full is None:
        more = " (cannot determine actual path)"
    lines = [f"backing file: {name}{more}"]
    if "backing-filename-format" in layer:
        lines.append(f"backing file format: {layer['backing-filename-format']}")
    return lines


def _snapshot_of(members: Mapping[str, Any]) -> SnapshotInfo:
    return SnapshotInfo(
        id=members["id"],
        name=members["name"],
        vm_state_size=members["vm-state-size"],
        date_seconds=members["date-sec"],
        date_nanoseconds=members["date-nsec"],
        vm_clock_nanoseconds=members["vm-clock-sec"] * 10**9 + members["vm-clock-nsec"],
        virtual_size=0,
        icount=members.get("icount"),
    )


def snapshot_lines(snapshots: list[SnapshotInfo]) -> list[str]:
    """Return the lines of a list of internal snapshots."""
    heads = ("ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT")
    lines = ["Snapshot list:", "{:<10}{:<17}{:>8}{:>20}{:>13}{:>11}".format(*heads)]
    for snapshot in snapshots:
        date = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(snapshot.date_seconds))
        nanoseconds = snapshot.vm_clock_nanoseconds
        seconds = nanoseconds // 10**9
        clock = (
            f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
            f".{nanoseconds // 10**6 % 1000:03}"
        )
        size = human_size(snapshot.vm_state_size)
        count = "" if snapshot.icount is None else str(snapshot.icount)
        lines.append(
            f"{snapshot.id:<9} {snapshot.name:<16} {size:>8}{date:>20}{clock:>13}{count:>11}"
        )
    return lines
