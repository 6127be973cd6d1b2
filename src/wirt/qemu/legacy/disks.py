"""From drives to disks: every drive gets its place, its format and its rank at boot."""

from __future__ import annotations

from typing import Any

import msgspec

from wirt.qemu.block import FORMATS
from wirt.qemu.boot import DEFAULT_ORDER
from wirt.qemu.legacy.draft import Draft, Drive
from wirt.qemu.legacy.note import Refused
from wirt.qemu.legacy.options.drives import protocol_of
from wirt.qemu.legacy.values import join
from wirt.spec.disk import Disk, Geometry, Throttle

BY_KIND = 1000
"""First boot index that the compiler gives by kind of device."""
EMPTY = "qcow2"
"""Format of a drive without a medium: the spec's default, which means nothing there."""
_UNITS = {"ide": 2, "scsi": 7, "floppy": 2}
_FIRST_CD = 2
_DEFAULT_IDS = ("disk", "nic", "serial", "usb", "sound")


def disks(draft: Draft) -> tuple[Disk, ...]:
    """Return the disks; drives that only QEMU's own words can say are added to ``args``."""
    _choose_interfaces(draft)
    _assign(draft)
    if draft.defaults:
        _add_empty(draft)
    _apply_geometry(draft)
    made: list[Disk] = []
    for drive in sorted(draft.drives, key=lambda one: one.position):
        if not drive.shown:
            draft.warnings.append(f"the drive {drive.id or drive.file} is shown by no device")
        elif _needs_words(drive):
            _as_words(draft, drive, len(made))
        else:
            made.append(_disk(draft, drive))
    _refuse_shared(draft)
    return tuple(made)


def _refuse_shared(draft: Draft) -> None:
    """One image in two drives was never safe; QEMU locks images since 2.10."""
    seen: set[str] = set()
    for drive in draft.drives:
        keeps = drive.shown and drive.media != "cdrom" and bool(drive.file)
        if not keeps or drive.settings.get("read_only") or _is_lost(draft, drive):
            continue
        if drive.file in seen:
            raise Refused(
                f"{drive.file} is in two drives, and both would write to it",
                "readonly=on or snapshot=on for one of them",
            )
        seen.add(drive.file)


def _is_lost(draft: Draft, drive: Drive) -> bool:
    return draft.snapshot or bool(drive.settings.get("discard_writes"))


def _is_q35(draft: Draft) -> bool:
    return "q35" in draft.settings.get("machine_type", "")


def _choose_interfaces(draft: Draft) -> None:
    for drive in draft.drives:
        if not drive.interface:
            drive.interface = "ide"
        if drive.interface == "ide" and _is_q35(draft):
            drive.interface = "sata"
        if drive.interface == "scsi" and drive.shown and "scsi" not in draft.ports:
            draft.settings.setdefault("scsi_controller", "lsi53c895a")


def _units(drive: Drive) -> int:
    return _UNITS.get(drive.interface, 1)


def _assign(draft: Draft) -> None:
    """Give places by index, by bus and unit, or the first that is free."""
    taken: set[tuple[str, int, int]] = set()
    for drive in draft.drives:
        if drive.shown and drive.interface in {"ide", "sata", "scsi", "floppy"}:
            place = _place(drive, taken)
            if place in taken:
                raise Refused(
                    f"two drives want the place of {drive.file or 'an empty drive'}: "
                    f"{drive.interface} bus {place[1]}, unit {place[2]}",
                    "give one of them another index=",
                )
            taken.add(place)
            _, drive.bus, drive.unit = place


def _place(drive: Drive, taken: set[tuple[str, int, int]]) -> tuple[str, int, int]:
    units = _units(drive)
    if drive.index is not None:
        bus, unit = divmod(drive.index, units)
        return drive.interface, bus, unit
    if drive.unit is not None or drive.bus is not None:
        bus = drive.bus or 0
        if drive.unit is not None:
            return drive.interface, bus, drive.unit
        if drive.interface in {"sata", "ide"}:
            return drive.interface, bus, 0
        free = (n for n in range(256) if (drive.interface, bus, n) not in taken)
        return drive.interface, bus, next(free)
    for number in range(256):
        bus, unit = divmod(number, units)
        if (drive.interface, bus, unit) not in taken:
            return drive.interface, bus, unit
    raise Refused("there are too many drives")


def _add_empty(draft: Draft) -> None:
    """The CD and floppy drives that every PC had."""
    kind = "sata" if _is_q35(draft) else "ide"
    bus, unit = (_FIRST_CD, 0) if kind == "sata" else divmod(_FIRST_CD, 2)
    places = {(drive.interface, drive.bus, drive.unit) for drive in draft.drives}
    last = 1 << 20
    if (kind, bus, unit) not in places and not any(d.media == "cdrom" for d in draft.drives):
        draft.drives.append(
            Drive("", kind, "cdrom", bus=bus, unit=unit, position=last)
        )  # fmt: skip
    if not any(drive.interface == "floppy" for drive in draft.drives):
        draft.drives.append(Drive("", "floppy", "disk", unit=0, position=last + 1))


def _apply_geometry(draft: Draft) -> None:
    if not draft.chs:
        return
    for drive in draft.drives:
        if drive.interface == "ide" and (drive.bus, drive.unit) == (0, 0):
            drive.settings["geometry"] = draft.chs
            return
    draft.warnings.append("-hdachs: there is no first disk")


def _needs_words(drive: Drive) -> bool:
    if not drive.file:
        return "as_words" in drive.settings
    odd = bool(drive.image_format) and drive.image_format not in FORMATS
    return bool(protocol_of(drive.file)) or odd or "as_words" in drive.settings


def _disk(draft: Draft, drive: Drive) -> Disk:
    settings = dict(drive.settings)
    media = drive.media or "disk"
    if media == "cdrom" and drive.interface in {"virtio", "sd", "pflash"}:
        media = "disk"
        settings["read_only"] = True
    if media == "cdrom" or drive.interface == "floppy":
        for key in ("read_only", "discard_writes", "geometry"):
            _forget(settings, key, unless=drive.interface == "floppy" and key == "read_only")
    _fit(draft, drive, media, settings)
    places = _placement(drive)
    return Disk(
        image=drive.file,
        format=_format(draft, drive),
        id=_identifier(drive.id),
        bus=drive.interface,  # type: ignore[arg-type]
        media=media,  # type: ignore[arg-type]
        boot_index=_boot_index(draft, drive),
        **places,
        **settings,
    )


def _forget(settings: dict[str, Any], key: str, *, unless: bool) -> None:
    if not unless:
        settings.pop(key, None)


def _fit(draft: Draft, drive: Drive, media: str, settings: dict[str, Any]) -> None:
    """Say in the spec's terms what drives of that bus can do."""
    writes = media == "disk" and drive.interface not in {"floppy", "pflash"}
    if settings.get("read_only") and drive.interface in {"ide", "sata", "sd"} and writes:
        del settings["read_only"]
        settings["discard_writes"] = True
        draft.warnings.append(
            f"{drive.file}: the guest cannot be told that an IDE disk is read-only; what it "
            "writes is thrown away"
        )
    if draft.snapshot and drive.interface != "pflash" and media == "disk" and drive.file:
        settings["discard_writes"] = True
    if "geometry" in settings:
        settings["geometry"] = Geometry(**settings["geometry"])
    if drive.interface in {"floppy", "sd", "pflash", "usb"}:
        settings.pop("geometry", None)
    if drive.interface in {"floppy", "sd", "pflash"}:
        settings.pop("on_write_error", None)
        settings.pop("on_read_error", None)
    if drive.interface in {"floppy", "sd", "pflash"} or (media == "cdrom" and not drive.file):
        settings.pop("serial", None)
    if "throttle" in settings:
        settings["throttle"] = Throttle(**settings["throttle"])
    if drive.interface != "virtio":
        settings.pop("address", None)


def _placement(drive: Drive) -> dict[str, Any]:
    match drive.interface:
        case "ide" | "scsi":
            return {"bus_index": drive.bus, "unit": drive.unit}
        case "sata":
            return {"bus_index": drive.bus}
        case "floppy":
            return {"unit": drive.unit}
        case _:
            return {}


def _format(draft: Draft, drive: Drive) -> str:
    if drive.image_format:
        return drive.image_format
    if not drive.file:
        return EMPTY
    if drive.file.startswith("/dev/"):
        return "raw"
    return draft.facts.format_of(drive.file)


def _identifier(name: str) -> str:
    stem = name.rstrip("0123456789")
    return "" if stem in _DEFAULT_IDS and stem != name else name


def _kind(drive: Drive) -> str:
    if drive.interface == "floppy":
        return "floppy"
    return "cdrom" if drive.media == "cdrom" else "disk"


def _boot_index(draft: Draft, drive: Drive) -> int | None:
    order = draft.boot.get("order") or ["disk"]
    if drive.interface == "floppy":
        return _floppy_boot(draft, drive)
    if drive.interface in {"sd", "pflash"}:
        return None
    if drive.boots and order[0] == "disk" and not draft.boot.get("once"):
        return 0
    return drive.boot_index


def _floppy_boot(draft: Draft, drive: Drive) -> int | None:
    index = draft.floppy_boot.get("B" if drive.unit else "A")
    if index is None or index >= BY_KIND:
        return None
    return max(0, index - bool(draft.boot.get("kernel")))


def _as_words(draft: Draft, drive: Drive, number: int) -> None:
    """A drive that the spec has no words for: a protocol, or a device with odd properties."""
    bare = "as_words" in drive.settings
    name = drive.id if bare and drive.id else draft.fresh("olddrive")
    pairs = [("file", drive.file)] if drive.file else []
    pairs += [("if", "none"), ("id", name)]
    pairs += _drive_words(draft, drive)
    draft.args += ["-drive", join(pairs)]
    if not bare:
        draft.args += ["-device", join(_device_words(draft, drive, name, number))]


def _drive_words(draft: Draft, drive: Drive) -> list[tuple[str, str]]:
    settings = drive.settings
    is_url = bool(protocol_of(drive.file))
    pairs = []
    made_up = drive.file.startswith(("fat:", "blkverify:"))
    probed = "" if is_url and not made_up else _format(draft, drive)
    image_format = drive.image_format or ("raw" if made_up else probed)
    if image_format and drive.file:
        pairs.append(("format", image_format))
    if drive.media == "cdrom":
        pairs.append(("media", "cdrom"))
    if "cache" in settings:
        pairs.append(("cache", settings["cache"]))
    if "aio" in settings and not is_url:
        pairs.append(("aio", settings["aio"]))
    if settings.get("read_only"):
        pairs.append(("read-only", "on"))
    fat = drive.file.startswith("fat:") and ":rw:" not in drive.file
    lost = settings.get("discard_writes") or draft.snapshot or fat
    if lost and drive.media != "cdrom" and drive.file:
        pairs.append(("snapshot", "on"))
    for key, setting in (("werror", "on_write_error"), ("rerror", "on_read_error")):
        if setting in settings and drive.interface != "floppy":
            pairs.append((key, settings[setting]))
    return pairs


def _device_words(draft: Draft, drive: Drive, name: str, number: int) -> list[tuple[str, str]]:
    cd = drive.media == "cdrom"
    pairs: list[tuple[str, str]] = []
    match drive.interface:
        case "ide":
            driver = "ide-cd" if cd else "ide-hd"
            pairs = [("bus", f"ide.{drive.bus}"), ("unit", str(drive.unit))]
        case "sata":
            driver, pairs = "ide-cd" if cd else "ide-hd", [("bus", f"ide.{drive.bus}")]
        case "scsi":
            driver = "scsi-cd" if cd else "scsi-hd"
            _scsi_by_words(draft)
            pairs = [("bus", "oldscsi.0"), ("scsi-id", str(drive.unit))]
        case "floppy":
            bus = "floppy.0" if _is_q35(draft) else "floppy-bus.0"
            driver, pairs = "floppy", [("bus", bus), ("unit", str(drive.unit))]
        case "usb":
            draft.has_usb = True
            driver, pairs = "usb-storage", [("bus", "usb.0")]
        case "virtio":
            driver = "virtio-blk-pci"
        case _:
            raise Refused(f"{drive.file}: {drive.interface} takes files only")
    index = _words_boot_index(draft, drive, number)
    if index is not None and drive.interface != "floppy":
        pairs.append(("bootindex", str(index)))
    return [("driver", driver), ("drive", name), *pairs]


def _scsi_by_words(draft: Draft) -> None:
    if "lsi53c895a,id=oldscsi" not in draft.args:
        draft.args += ["-device", "lsi53c895a,id=oldscsi"]


def _words_boot_index(draft: Draft, drive: Drive, number: int) -> int | None:
    explicit = _boot_index(draft, drive)
    if explicit is not None or draft.boot.get("kernel") or draft.boot.get("once"):
        return explicit
    order = list(draft.boot.get("order") or DEFAULT_ORDER)
    kind = _kind(drive)
    if kind not in order:
        return None
    return 1000 * (1 + order.index(kind)) + 500 + number + draft.made


def replace_ids(made: tuple[Disk, ...]) -> tuple[Disk, ...]:
    """Return the disks with ids that only one of them has."""
    seen: set[str] = set()
    out = []
    for disk in made:
        kept = disk if disk.id not in seen else msgspec.structs.replace(disk, id="")
        seen.add(disk.id)
        out.append(kept)
    return tuple(out)
