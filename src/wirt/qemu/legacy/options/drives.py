"""Disks, CDs and floppies as they were written before ``-blockdev``."""

from __future__ import annotations

import re
from typing import Any

from wirt.qemu.block import FORMATS
from wirt.qemu.legacy.draft import Draft, Drive
from wirt.qemu.legacy.line import DISK, Given
from wirt.qemu.legacy.note import Outcome, Refused
from wirt.qemu.legacy.option import Option, flag, keep, valued
from wirt.qemu.legacy.values import Values, number, parse, size

_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]")
_DEAD = {
    "sheepdog": "Sheepdog was dropped from QEMU in 6.1 and lives no more",
    "cow": "QEMU dropped the cow format in 2.2",
}
_CACHES = {
    "off": "none", "none": "none", "writeback": "writeback", "on": "writeback",
    "writethrough": "writethrough", "unsafe": "unsafe", "directsync": "directsync",
}  # fmt: skip
_INTERFACES = {"ide", "scsi", "virtio", "floppy", "pflash", "sd", "none"}
_NOT_HERE = {
    "mtd": "flash chips of this kind are on boards of ARM",
    "xen": "these disks are for Xen",
}
_LIMITS = {
    "bps": "bytes_total", "bps_rd": "bytes_read", "bps_wr": "bytes_write",
    "iops": "iops_total", "iops_rd": "iops_read", "iops_wr": "iops_write",
    "throttling.bps-total": "bytes_total", "throttling.bps-read": "bytes_read",
    "throttling.bps-write": "bytes_write", "throttling.iops-total": "iops_total",
    "throttling.iops-read": "iops_read", "throttling.iops-write": "iops_write",
}  # fmt: skip
_ACTIONS = ("ignore", "stop", "report", "enospc")
_TRANSLATIONS = ("none", "lba", "auto", "large", "rechs")


def protocol_of(file: str) -> str:
    """Return ``nbd`` for ``nbd:host:10809``, and nothing for a path."""
    if "/" in file.partition(":")[0]:
        return ""
    match = _PROTOCOL.match(file)
    return match[1] if match else ""


def check_file(draft: Draft, file: str) -> None:
    """Refuse a file that cannot be had. Raises Refused."""
    if _WINDOWS.match(file):
        raise Refused(f"{file} is a path of Windows", "copy the image here and name its new path")
    protocol = protocol_of(file)
    if protocol in _DEAD:
        raise Refused(_DEAD[protocol], "wirt img convert OLD NEW.qcow2, if it is still to be had")
    if protocol in {"fat", "nbd", "json", "file", "blkverify", "blkdebug"} or "://" in file:
        return
    if not protocol and file:
        draft.need(file, "the device" if file.startswith("/dev/") else "the image")


def _add(draft: Draft, given: Given, drive: Drive) -> None:
    drive.position = given.position
    file = drive.file
    if protocol_of(file) == "file":
        drive.file = file.removeprefix("file:")
    if drive.image_format in _DEAD:
        raise Refused(
            _DEAD[drive.image_format], "wirt img convert OLD NEW.qcow2, if it is still to be had"
        )
    check_file(draft, drive.file)
    draft.drives.append(drive)


def hard_disk(draft: Draft, given: Given) -> Outcome | None:
    """``-hda`` to ``-hdd``."""
    place = "abcd".index(given.option[2])
    _add(draft, given, Drive(given.value, "", "disk", index=place))
    return None


def first_disk(draft: Draft, given: Given) -> Outcome | None:
    """A word alone."""
    _add(draft, given, Drive(given.value, "", "disk", index=0))
    return None


def cdrom(draft: Draft, given: Given) -> Outcome | None:
    """CD in the third IDE drive."""
    _add(draft, given, Drive(given.value, "", "cdrom", index=2))
    return None


def floppy(draft: Draft, given: Given) -> Outcome | None:
    """``-fda`` and ``-fdb``."""
    _add(draft, given, Drive(given.value, "floppy", "disk", index="ab".index(given.option[2])))
    return None


def flash(draft: Draft, given: Given) -> Outcome | None:
    """A flash chip with firmware."""
    _add(draft, given, Drive(given.value, "pflash", "disk", image_format="raw"))
    return None


def card(draft: Draft, given: Given) -> Outcome | None:
    """An SD card."""
    _add(draft, given, Drive(given.value, "sd", "disk"))
    return None


def geometry(draft: Draft, given: Given) -> Outcome | None:
    """Geometry of the first disk: cylinders,heads,sectors[,translation]."""
    parts = given.value.split(",")
    if len(parts) not in {3, 4}:
        raise Refused("cylinders,heads,sectors[,none|lba|auto] is expected")
    draft.chs = _chs(*parts)
    return None


def _chs(cylinders: str, heads: str, sectors: str, translation: str = "auto") -> dict[str, Any]:
    if translation not in _TRANSLATIONS:
        raise Refused(f"there is no translation {translation!r}", "none, lba or auto")
    return {
        "cylinders": number(cylinders, "cylinders", 1, 16383),
        "heads": number(heads, "heads", 1, 16),
        "sectors": number(sectors, "sectors", 1, 63),
        "translation": translation,
    }


def drive(draft: Draft, given: Given) -> Outcome | None:
    """A drive in all details."""
    if given.value in {"?", "help"}:
        raise Refused("QEMU has no list of drives", "see drives in the manual")
    values = parse(given.value)
    values.take("throttling.group")
    remarks: list[str] = []
    made = Drive(values.take("file"), _interface(values), _media(values))
    made.id = values.take("id")
    made.index = _optional(values, "index")
    made.bus, made.unit = _optional(values, "bus"), _optional(values, "unit")
    if made.index is not None and (made.bus is not None or made.unit is not None):
        raise Refused("index= and bus=,unit= name the place twice", "use one of them")
    made.image_format = _format(values)
    made.boots = values.has("boot") and values.flag("boot")
    made.shown = made.interface != "none"
    made.settings = _settings(values, made, remarks)
    left = [key for key, _ in values]
    if left:
        raise Refused(f"-drive never had {left[0][:40]}=")
    _add(draft, given, made)
    return Outcome(why="; ".join(remarks))


def _interface(values: Values) -> str:
    name = values.take("if")
    if name in _NOT_HERE:
        raise Refused(f"if={name}: {_NOT_HERE[name]}", "if=virtio")
    if name and name not in _INTERFACES:
        raise Refused(f"if={name[:20]}: there is no such bus", "ide, scsi, virtio, floppy, sd")
    return name


def _media(values: Values) -> str:
    media = values.take("media", default="disk")
    if media not in {"disk", "cdrom"}:
        raise Refused(f"media={media[:20]}: there is no such medium", "disk or cdrom")
    return media


def _optional(values: Values, key: str) -> int | None:
    return number(values.take(key), key, 0, 255) if values.has(key) else None


def _format(values: Values) -> str:
    name = values.take("format", "driver")
    if name in {"host_device", "host_cdrom", "file"}:
        return "raw"
    if name and name not in {*FORMATS, *_DEAD, "vvfat", "nbd"}:
        raise Refused(f"format={name[:20]}: QEMU has no such format", ", ".join(FORMATS))
    return name


def _settings(values: Values, made: Drive, remarks: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    cache = values.take("cache")
    if cache:
        if cache not in _CACHES:
            raise Refused(f"cache={cache[:20]}: there is no such mode", ", ".join(_CACHES))
        found["cache"] = _CACHES[cache]
    _cache_parts(values, found)
    _input_output(values, found, remarks)
    for key in ("snapshot", "readonly", "read-only"):
        if values.has(key) and values.flag(key):
            found["discard_writes" if key == "snapshot" else "read_only"] = True
    left_out = ("copy-on-read", "copy_on_read", "auto-read-only", "force-share", "node-name")
    remarks += [f"{key}= is left out" for key in left_out if values.take(key) not in {"", "off"}]
    if values.has("cyls") or values.has("heads") or values.has("secs"):
        found["geometry"] = _chs(
            values.take("cyls", default="0"),
            values.take("heads", default="0"),
            values.take("secs", default="0"),
            values.take("trans", default="auto"),
        )
    else:
        values.take("trans")
    _identity(values, found)
    _errors(values, found, made)
    _throttle(values, found)
    return found


def _cache_parts(values: Values, found: dict[str, Any]) -> None:
    keys = ("cache.writeback", "cache.direct", "cache.no-flush")
    if not any(values.has(key) for key in keys):
        return
    back = values.flag(keys[0], default=True)
    direct, no_flush = values.flag(keys[1]), values.flag(keys[2])
    modes = {(True, False): "writeback", (True, True): "none", (False, False): "writethrough"}
    found["cache"] = "unsafe" if no_flush else modes.get((back, direct), "directsync")


def _input_output(values: Values, found: dict[str, Any], remarks: list[str]) -> None:
    aio = values.take("aio", default="threads")
    if aio not in {"threads", "native", "io_uring"}:
        raise Refused(f"aio={aio[:20]}: there is no such interface", "threads or native")
    if aio == "native" and found.get("cache") not in {"none", "directsync"}:
        remarks.append("aio=native works with cache=none only, now: threads are used")
        aio = "threads"
    if aio != "threads":
        found["aio"] = aio
    discard = values.take("discard")
    if discard:
        found["discard"] = "unmap" if discard in {"unmap", "on"} else "ignore"
    zeroes = values.take("detect-zeroes")
    if zeroes in {"on", "unmap"}:
        found["detect_zeroes"] = zeroes


def _identity(values: Values, found: dict[str, Any]) -> None:
    serial = values.take("serial")
    if serial:
        if not serial.isascii() or not serial.isprintable():
            raise Refused("a serial number is ASCII")
        found["serial"] = serial[:20]
    address = values.take("addr")
    if address:
        found["address"] = slot(address)


def slot(text: str) -> str:
    """Return a PCI address as the spec has it. Raises Refused."""
    bare = text.lower().removeprefix("0x")
    match = re.fullmatch(r"([0-9a-f]{1,2})(?:\.(?:0x)?([0-7]))?", bare)
    if not match or int(match[1], 16) > 0x1F:
        raise Refused(f"addr={text[:20]} is no PCI slot", "0x2 to 0x1f")
    function = f".{match[2]}" if match[2] and match[2] != "0" else ""
    return f"{int(match[1], 16):x}{function}"


def _errors(values: Values, found: dict[str, Any], made: Drive) -> None:
    for key, setting in (("werror", "on_write_error"), ("rerror", "on_read_error")):
        action = values.take(key)
        if not action:
            continue
        if action not in _ACTIONS or (key == "rerror" and action == "enospc"):
            raise Refused(f"{key}={action[:20]}: there is no such reaction", ", ".join(_ACTIONS))
        if made.interface != "floppy":
            found[setting] = action


def _throttle(values: Values, found: dict[str, Any]) -> None:
    limits: dict[str, int] = {}
    for key, setting in _LIMITS.items():
        text = values.take(key)
        if text:
            limits[setting] = size(text, key, default_unit="")
    limits = {key: value for key, value in limits.items() if value}
    if limits:
        found["throttle"] = limits


def snapshot(draft: Draft, _given: Given) -> Outcome | None:
    """All writes are lost at the end."""
    draft.snapshot = True
    return None


def mtd(_draft: Draft, _given: Given) -> Outcome | None:
    """On-board flash."""
    raise Refused("a PC has no such flash memory: boards of ARM do", "-pflash, or a disk")


OPTIONS: tuple[Option, ...] = (
    *(
        valued(
            f"hd{letter}",
            "0.8",
            "",
            f"IDE disk {place}",
            hard_disk,
            "-blockdev and -device ide-hd",
            "its format is found in the file, or named",
        )
        for place, letter in enumerate("abcd")
    ),
    valued(DISK, "0.8", "", "first IDE disk", first_disk, "-blockdev and -device ide-hd"),
    valued("cdrom", "0.8", "", "CD in the third IDE drive", cdrom, "-blockdev and -device ide-cd"),
    valued("fda", "0.8", "", "first floppy", floppy, "-blockdev and -device floppy"),
    valued("fdb", "0.8", "", "second floppy", floppy, "-blockdev and -device floppy"),
    valued(
        "hdachs",
        "0.8",
        "2.12",
        "geometry of the first disk",
        geometry,
        "-device ide-hd,cyls=,heads=,secs=",
    ),
    valued("drive", "0.9", "", "a drive in all details", drive, "-blockdev and -device"),
    flag(
        "snapshot",
        "0.8",
        "",
        "writes to disks are lost at the end",
        snapshot,
        "a temporary overlay of each disk",
    ),
    valued("pflash", "0.9", "", "flash chip with firmware", flash, "-machine pflash0="),
    valued("sd", "0.9", "", "SD card", card, "-device sdhci-pci and -device sd-card"),
    valued("mtdblock", "0.9", "", "on-board flash memory", mtd, "none: it is for boards of ARM"),
    valued("set", "0.12", "", "property of an object of the line", keep),
    valued("iscsi", "1.3", "", "how to log in to iSCSI targets", keep),
)
