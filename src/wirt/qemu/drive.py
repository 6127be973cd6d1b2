"""Drives: how the guest sees the disks, and the controllers that they hang on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from wirt.errors import SpecError
from wirt.qapi.value import Argument, QapiObject, blockdev, device, user_object
from wirt.qemu import block
from wirt.qemu.board import Board
from wirt.qemu.runtime import Runtime
from wirt.spec.disk import Disk, Geometry

_NO_WRITE_CACHE = {"writethrough", "directsync"}
_SERIAL_LENGTH = {"virtio": 20, "ide": 20, "sata": 20, "scsi": 36, "usb": 20}
_SCSI_DEVICE_ID = 20
_ATA = {"ide", "sata"}
_ATA_HEADS = 16
_ALWAYS_WRITABLE = {*_ATA, "sd"}
_HAS_GEOMETRY = {"virtio", "scsi", *_ATA}
_SCSI_TARGETS = {"virtio-scsi": 256, "lsi53c895a": 7}
_SCSI_DRIVERS = {"virtio-scsi": "virtio-scsi-pci", "lsi53c895a": "lsi53c895a"}
_SCSI_CONTROLLERS = 4
_SATA_PORTS = 6
_FLOPPIES = 2


class DiskValues(msgspec.Struct, frozen=True):
    """A disk ready to be plugged, cold or hot: apply the parts in this order."""

    fd_set: QapiObject | None
    """``-add-fd``; while running: ``add-fd`` with this set and the descriptor."""
    objects: tuple[QapiObject, ...]
    """``object-add``."""
    nodes: tuple[QapiObject, ...]
    """``blockdev-add``."""
    devices: tuple[QapiObject, ...]
    """``device_add``; the last one is the drive."""

    def arguments(self) -> list[Argument]:
        """Return the options for the start."""
        return [
            *([Argument("-add-fd", self.fd_set)] if self.fd_set else []),
            *map(user_object, self.objects),
            *map(blockdev, self.nodes),
            *map(device, self.devices),
        ]


class Buses(msgspec.Struct):
    """Places on the disk buses given so far: the next free one of each."""

    ide: int = 0
    sata: int = 0
    floppy: int = 0
    sd: int = 0
    scsi: Counter[int] = msgspec.field(default_factory=Counter)


def disk_arguments(
    disks: Sequence[Disk], boot_indexes: Sequence[int | None], board: Board, runtime: Runtime
) -> list[Argument]:
    """Return controllers, nodes and drives of all disks, in the order of the disks."""
    buses = Buses()
    made: list[Argument] = []
    for index, (disk, boot_index) in enumerate(zip(disks, boot_indexes, strict=True)):
        if disk.bus == "pflash":  # the board itself shows it: firmware.flash_nodes
            _check(disk, index)
            made += _values(disk, index, runtime, ()).arguments()
            continue
        place = drive_place(disk, index, board, buses)
        made += disk_values(disk, index, runtime, place, boot_index).arguments()
    return [*_controllers(disks, boot_indexes, board), *made]


def disk_values(
    disk: Disk, index: int, runtime: Runtime, place: QapiObject, boot_index: int | None = None
) -> DiskValues:
    """Return what QEMU is told of one disk. ``place`` is the drive's bus and address.

    The same values serve the start and hot-plug: there ``place`` is that of a free root
    port (``board.port_place``), and ``index`` one that no disk of the machine has.
    """
    devices = []
    if _is_usb_cd(disk):
        bridge = f"{block.disk_id(disk, index)}-usb"
        devices.append({"driver": "usb-bot", "id": bridge, **place})
        place = {"bus": f"{bridge}.0", "lun": 0}
    devices.append(_drive(disk, index, place, boot_index))
    return _values(disk, index, runtime, tuple(devices))


def _values(
    disk: Disk, index: int, runtime: Runtime, devices: tuple[QapiObject, ...]
) -> DiskValues:
    if not disk.image:
        return DiskValues(None, (), (), devices)
    return DiskValues(
        fd_set=block.fd_set(disk, index, runtime),
        objects=tuple(block.limits_objects(disk, index)),
        nodes=tuple(block.disk_nodes(disk, index, runtime)),
        devices=devices,
    )


def _is_usb_cd(disk: Disk) -> bool:
    return disk.bus == "usb" and disk.media == "cdrom"


def _drive(disk: Disk, index: int, place: QapiObject, boot_index: int | None) -> QapiObject:
    _check(disk, index)
    value: QapiObject = {"driver": _driver(disk), "id": block.disk_id(disk, index), **place}
    if disk.image:
        value["drive"] = block.node_name(disk, index)
    if disk.bus in {"floppy", "sd"}:
        return value
    if boot_index is not None:
        value["bootindex"] = boot_index
    if disk.serial:
        value["serial"] = disk.serial
    if len(disk.serial) > _SCSI_DEVICE_ID:  # else QEMU 10 refuses to derive it
        value["device_id"] = disk.serial[:_SCSI_DEVICE_ID]
    if disk.media == "disk":
        value["write-cache"] = "off" if disk.cache in _NO_WRITE_CACHE else "on"
        value.update(_geometry(disk))
    return {**value, **_error_actions(disk)}


def _check(disk: Disk, index: int) -> None:
    key = f"disks[{index}]"
    longest = _SERIAL_LENGTH.get(disk.bus, 0)
    if len(disk.serial) > longest:
        what = f"at most {longest} characters" if longest else "no serial number"
        raise SpecError(f"{disk.bus} drives have {what}", key=f"{key}.serial")
    if not disk.serial.isascii():
        raise SpecError("a serial number is ASCII", key=f"{key}.serial")
    if disk.read_only and disk.media == "disk" and disk.bus in _ALWAYS_WRITABLE:
        raise SpecError(
            f"{disk.bus} disks cannot be read-only",
            key=f"{key}.read_only",
            hint="use virtio or scsi, or discard_writes = true",
        )
    if disk.address and disk.bus != "virtio":
        raise SpecError("only virtio disks are PCI devices", key=f"{key}.address")
    if disk.geometry:
        _check_geometry(disk, disk.geometry, f"{key}.geometry")


def _check_geometry(disk: Disk, geometry: Geometry, key: str) -> None:
    if disk.bus not in _HAS_GEOMETRY:
        raise SpecError(f"{disk.bus} drives have none", key=key)
    if disk.bus not in _ATA:
        if geometry.translation != "auto":
            raise SpecError(
                "only IDE and SATA drives have a BIOS translation", key=f"{key}.translation"
            )
    elif geometry.heads > _ATA_HEADS:
        raise SpecError(f"{disk.bus} drives have at most {_ATA_HEADS} heads", key=f"{key}.heads")


def _driver(disk: Disk) -> str:
    kind = "cd" if disk.media == "cdrom" else "hd"
    match disk.bus:
        case "virtio":
            return "virtio-blk-pci"
        case "scsi":
            return f"scsi-{kind}"
        case "ide" | "sata":
            return f"ide-{kind}"
        case "usb":
            return "scsi-cd" if kind == "cd" else "usb-storage"
        case "sd":
            return "sd-card"
        case _:
            return "floppy"


def _geometry(disk: Disk) -> QapiObject:
    chs = disk.geometry
    if chs is None:
        return {}
    value: QapiObject = {"cyls": chs.cylinders, "heads": chs.heads, "secs": chs.sectors}
    if chs.translation != "auto":
        value["bios-chs-trans"] = chs.translation
    return value


def _error_actions(disk: Disk) -> QapiObject:
    value: QapiObject = {}
    if disk.on_write_error != "default":
        value["werror"] = disk.on_write_error
    if disk.on_read_error != "default":
        value["rerror"] = disk.on_read_error
    return value


def drive_place(disk: Disk, index: int, board: Board, buses: Buses) -> QapiObject:
    """Return bus and address for the drive. Raises SpecError when there is no place left."""
    key = f"disks[{index}]"
    match disk.bus:
        case "virtio":
            return board.at(disk.address) if disk.address else board.pluggable("disk")
        case "scsi":
            return _scsi_place(disk, board, buses, key)
        case "ide" if not board.is_pcie:
            return _ide_place(disk, buses, key)
        case "ide" | "sata":
            return _sata_place(disk, board, buses, key)
        case "floppy":
            return _floppy_place(disk, board, buses, key)
        case "usb":
            return board.usb()
        case "sd":
            buses.sd += 1
            if buses.sd > 1:
                raise SpecError("there is one SD slot", key=key)
            return {"bus": "sd-bus"}
        case _:
            raise SpecError(
                f"{disk.bus} belongs to other boards", key=f"{key}.bus", hint="use virtio"
            )


def _scsi_place(disk: Disk, board: Board, buses: Buses, key: str) -> QapiObject:
    number = disk.bus_index or 0
    target = disk.unit if disk.unit is not None else buses.scsi[number]
    buses.scsi[number] = max(buses.scsi[number], target + 1)
    targets = _SCSI_TARGETS[board.scsi_controller]
    if number >= _SCSI_CONTROLLERS or target >= targets:
        raise SpecError(f"there are {_SCSI_CONTROLLERS} SCSI buses of {targets} targets", key=key)
    return {"bus": f"{_scsi_id(number)}.0", "channel": 0, "scsi-id": target, "lun": 0}


def _scsi_id(number: int) -> str:
    return f"scsi{number}" if number else "scsi"


def _ide_place(disk: Disk, buses: Buses, key: str) -> QapiObject:
    if disk.bus_index is not None or disk.unit is not None:
        place = (disk.bus_index or 0) * 2 + (disk.unit or 0)
    else:
        place = buses.ide
    buses.ide = max(buses.ide, place + 1)
    if place > 3 or (disk.unit or 0) > 1:
        raise SpecError("there are four IDE drives", key=key, hint="use virtio, sata or scsi")
    return {"bus": f"ide.{place // 2}", "unit": place % 2}


def _sata_place(disk: Disk, board: Board, buses: Buses, key: str) -> QapiObject:
    port = disk.bus_index if disk.bus_index is not None else buses.sata
    buses.sata = max(buses.sata, port + 1)
    if port >= _SATA_PORTS or disk.unit:
        raise SpecError("there are six SATA ports of one drive", key=key, hint="use virtio or scsi")
    controller = "ide" if board.is_pcie else "ahci"
    return {"bus": f"{controller}.{port}", "unit": 0}


def _floppy_place(disk: Disk, board: Board, buses: Buses, key: str) -> QapiObject:
    unit = disk.unit if disk.unit is not None else buses.floppy
    buses.floppy = max(buses.floppy, unit + 1)
    if unit >= _FLOPPIES:
        raise SpecError("there are two floppy drives", key=key)
    return {"bus": "floppy.0" if board.is_pcie else "floppy-bus.0", "unit": unit}


def _controllers(
    disks: Sequence[Disk], boot_indexes: Sequence[int | None], board: Board
) -> list[Argument]:
    used = {disk.bus for disk in disks}
    made = [_scsi_controller(number, board) for number in _scsi_buses(disks)]
    if "sata" in used and not board.is_pcie:
        made.append(device({"driver": "ich9-ahci", "id": "ahci", **board.single("ahci")}))
    if "floppy" in used:
        made += _floppy_controller(disks, boot_indexes, board)
    if "sd" in used:
        made.append(device({"driver": "sdhci-pci", "id": "sdhci", **board.single("sdhci")}))
    return made


def _scsi_buses(disks: Sequence[Disk]) -> list[int]:
    return sorted({disk.bus_index or 0 for disk in disks if disk.bus == "scsi"})


def _scsi_controller(number: int, board: Board) -> Argument:
    place = board.slot("other") if number else board.single("scsi")
    driver = _SCSI_DRIVERS[board.scsi_controller]
    return device({"driver": driver, "id": _scsi_id(number), **place})


def _floppy_controller(
    disks: Sequence[Disk], boot_indexes: Sequence[int | None], board: Board
) -> list[Argument]:
    """Floppies boot by an index of their controller. The older boards always have one."""
    indexes: QapiObject = {}
    floppies = [index for index, disk in enumerate(disks) if disk.bus == "floppy"]
    for place, index in enumerate(floppies):
        unit = disks[index].unit
        boot_index = boot_indexes[index]
        if boot_index is not None:
            indexes["bootindexB" if (place if unit is None else unit) else "bootindexA"] = (
                boot_index
            )
    if board.is_pcie:
        return [device({"driver": "isa-fdc", "id": "floppy", **indexes})]
    return [
        Argument("-global", {"driver": "isa-fdc", "property": name, "value": value})
        for name, value in indexes.items()
    ]
