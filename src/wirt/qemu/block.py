"""Disks: block nodes (file, format, throttle) and the drives that show them to the guest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wirt.errors import SpecError
from wirt.qapi.value import Argument, QapiObject, blockdev, device, user_object
from wirt.qemu.board import Board
from wirt.qemu.runtime import Runtime
from wirt.spec.disk import Disk, Throttle

_DIRECT = {"none", "directsync"}
_NO_WRITE_CACHE = {"writethrough", "directsync"}
_SCSI_TARGETS = 255


@dataclass(slots=True)
class Buses:
    """Places on the disk buses given so far."""

    ide: int = 0
    sata: int = 0
    scsi: int = 0
    floppy: int = 0


def disk_id(disk: Disk, index: int) -> str:
    """Return the identifier of the drive: also the stem of its node names."""
    return disk.id or f"disk{index}"


def node_name(disk: Disk, index: int) -> str:
    """Return the node that the drive shows: the top of the disk's block graph."""
    stem = disk_id(disk, index)
    return f"{stem}-throttle" if disk.throttle else f"{stem}-format"


def disk_arguments(
    disks: Sequence[Disk],
    boot_indexes: Sequence[int | None],
    board: Board,
    runtime: Runtime,
) -> list[Argument]:
    """Return controllers, nodes and drives of all disks, in the order of the disks."""
    buses = Buses()
    drives: list[Argument] = []
    for index, (disk, boot_index) in enumerate(zip(disks, boot_indexes, strict=True)):
        if disk.image:
            drives += node_arguments(disk, index, runtime)
        drives.append(device(drive(disk, index, boot_index, board, buses)))
    return [*_controllers(disks, board), *drives]


def node_arguments(disk: Disk, index: int, runtime: Runtime) -> list[Argument]:
    """Return the block nodes of a disk, from the file upwards."""
    arguments = []
    stem = disk_id(disk, index)
    fd = runtime.fd_paths.get(disk.image)
    if fd is not None:
        arguments.append(Argument("-add-fd", {"fd": fd, "set": _fd_set(index)}))
    if disk.throttle:
        group = {"qom-type": "throttle-group", "id": f"{stem}-limits"}
        arguments.append(user_object({**group, "limits": throttle_limits(disk.throttle)}))
    filename = f"/dev/fdset/{_fd_set(index)}" if fd is not None else runtime.path(disk.image)
    return [*arguments, *(blockdev(node) for node in nodes(disk, stem, filename))]


def _fd_set(index: int) -> int:
    return index + 1


def nodes(disk: Disk, stem: str, filename: str) -> list[QapiObject]:
    """Return the nodes as ``blockdev-add`` takes them."""
    common: QapiObject = {
        "read-only": disk.read_only or disk.media == "cdrom",
        "discard": disk.discard,
        "cache": {"direct": disk.cache in _DIRECT, "no-flush": disk.cache == "unsafe"},
    }
    is_device = filename.startswith("/dev/") and not filename.startswith("/dev/fdset/")
    bottom: QapiObject = {
        "driver": "host_device" if is_device else "file",
        "node-name": f"{stem}-file",
        "filename": filename,
        "aio": disk.aio,
        **common,
    }
    image: QapiObject = {
        "driver": disk.format,
        "node-name": f"{stem}-format",
        "file": f"{stem}-file",
        **common,
    }
    if not disk.throttle:
        return [bottom, image]
    throttle: QapiObject = {
        "driver": "throttle",
        "node-name": f"{stem}-throttle",
        "throttle-group": f"{stem}-limits",
        "file": f"{stem}-format",
        "discard": disk.discard,
    }
    return [bottom, image, throttle]


def throttle_limits(throttle: Throttle) -> QapiObject:
    """Return the limits as the throttle-group's property takes them, also at run time."""
    return {
        "bps-total": throttle.bytes_total,
        "bps-read": throttle.bytes_read,
        "bps-write": throttle.bytes_write,
        "iops-total": throttle.iops_total,
        "iops-read": throttle.iops_read,
        "iops-write": throttle.iops_write,
    }


def drive(disk: Disk, index: int, boot_index: int | None, board: Board, buses: Buses) -> QapiObject:
    """Return the drive as ``device_add`` takes it."""
    driver, place = _place(disk, board, buses)
    value: QapiObject = {"driver": driver, "id": disk_id(disk, index), **place}
    if disk.image:
        value["drive"] = node_name(disk, index)
    if boot_index is not None:
        value["bootindex"] = boot_index
    if disk.serial:
        value["serial"] = disk.serial
    if disk.media == "disk" and disk.bus not in {"floppy", "sd"}:
        value["write-cache"] = "off" if disk.cache in _NO_WRITE_CACHE else "on"
        value.update(_error_actions(disk))
        value.update(_geometry(disk))
    return value


def _error_actions(disk: Disk) -> QapiObject:
    value: QapiObject = {}
    if disk.on_write_error != "default":
        value["werror"] = disk.on_write_error
    if disk.on_read_error != "default":
        value["rerror"] = disk.on_read_error
    return value


def _geometry(disk: Disk) -> QapiObject:
    chs = disk.geometry
    if chs is None:
        return {}
    value: QapiObject = {"cyls": chs.cylinders, "heads": chs.heads, "secs": chs.sectors}
    if chs.translation != "auto":
        if disk.bus not in {"ide", "sata"}:
            raise SpecError("only IDE and SATA drives have a BIOS translation", key="disks")
        value["bios-chs-trans"] = chs.translation
    return value


def _place(disk: Disk, board: Board, buses: Buses) -> tuple[str, QapiObject]:
    kind = "cd" if disk.media == "cdrom" else "hd"
    match disk.bus:
        case "virtio":
            return "virtio-blk-pci", board.pluggable()
        case "scsi":
            return f"scsi-{kind}", _scsi_place(disk, buses)
        case "ide" if not board.is_pcie:
            return f"ide-{kind}", _ide_place(disk, buses)
        case "ide" | "sata":
            return f"ide-{kind}", _sata_place(disk, board, buses)
        case "floppy":
            unit = disk.unit if disk.unit is not None else buses.floppy
            buses.floppy = unit + 1
            return "floppy", {"bus": "floppy.0", "unit": unit}
        case "usb":
            return "usb-storage", {"bus": "usb.0", "removable": disk.media == "cdrom"}
        case "sd":
            return "sd-card", {}
        case _:
            raise SpecError(
                f"drives on {disk.bus} belong to other boards", key="disks", hint="use virtio"
            )


def _scsi_place(disk: Disk, buses: Buses) -> QapiObject:
    target = disk.unit if disk.unit is not None else buses.scsi
    buses.scsi = target + 1
    if target > _SCSI_TARGETS:
        raise SpecError("a SCSI bus has 256 targets", key="disks")
    return {"bus": "scsi.0", "channel": 0, "scsi-id": target, "lun": 0}


def _ide_place(disk: Disk, buses: Buses) -> QapiObject:
    if disk.bus_index is not None or disk.unit is not None:
        place = (disk.bus_index or 0) * 2 + (disk.unit or 0)
    else:
        place = buses.ide
    buses.ide = max(buses.ide, place + 1)
    if place > 3:
        raise SpecError("there are four IDE drives", key="disks", hint="use virtio, sata or scsi")
    return {"bus": f"ide.{place // 2}", "unit": place % 2}


def _sata_place(disk: Disk, board: Board, buses: Buses) -> QapiObject:
    port = disk.bus_index if disk.bus_index is not None else buses.sata
    buses.sata = max(buses.sata, port + 1)
    if port > 5:
        raise SpecError("there are six SATA ports", key="disks", hint="use virtio or scsi")
    controller = "ide" if board.is_pcie else "ahci"
    return {"bus": f"{controller}.{port}"}


def _controllers(disks: Sequence[Disk], board: Board) -> list[Argument]:
    used = {disk.bus for disk in disks}
    arguments = []
    if "scsi" in used:
        scsi: QapiObject = {"driver": "virtio-scsi-pci", "id": "scsi", **board.single("scsi")}
        arguments.append(device(scsi))
    if "sata" in used and not board.is_pcie:
        ahci: QapiObject = {"driver": "ich9-ahci", "id": "ahci", **board.single("ahci")}
        arguments.append(device(ahci))
    if "floppy" in used:
        arguments.append(device({"driver": "isa-fdc", "id": "floppy"}))
    if "sd" in used:
        sdhci: QapiObject = {"driver": "sdhci-pci", "id": "sdhci", **board.single("sdhci")}
        arguments.append(device(sdhci))
    return arguments
