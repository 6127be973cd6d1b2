"""Disks: an image and how the guest sees it."""

from typing import Annotated, Literal

import msgspec

from wirt.spec.setting import ID_PATTERN, SLOT_PATTERN, Index, number, setting, size, text

Bus = Literal["virtio", "scsi", "ide", "sata", "floppy", "usb", "sd", "pflash", "mtd"]
Media = Literal["disk", "cdrom"]
Cache = Literal["writeback", "none", "writethrough", "unsafe", "directsync"]
ErrorAction = Literal["default", "report", "ignore", "stop", "enospc"]


class Geometry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """CHS geometry for guests that boot by it."""

    cylinders: Annotated[int, number("Cylinders", ge=1, le=65535)]
    heads: Annotated[int, number("Heads", ge=1, le=255)]
    sectors: Annotated[int, number("Sectors of a track", ge=1, le=255)]
    translation: Annotated[
        Literal["auto", "none", "lba", "large", "rechs"], setting("BIOS translation")
    ] = "auto"


class Throttle(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Limits of a disk; 0 means none. Enforced by QEMU's throttle filter, changeable live."""

    bytes_total: Annotated[int, size("Bytes a second, reads and writes")] = 0
    bytes_read: Annotated[int, size("Bytes a second read")] = 0
    bytes_write: Annotated[int, size("Bytes a second written")] = 0
    iops_total: Annotated[int, number("Requests a second", ge=0)] = 0
    iops_read: Annotated[int, number("Read requests a second", ge=0)] = 0
    iops_write: Annotated[int, number("Write requests a second", ge=0)] = 0


class Disk(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A drive of the machine and the image in it."""

    image: Annotated[str, text("Image file; relative to the VM's directory")] = ""
    """Empty: a drive without a medium (cdrom and floppy only)."""
    format: Annotated[str, text("Format of the image: never guessed", pattern=ID_PATTERN)] = "qcow2"
    id: Annotated[str, text("Identifier of the device", pattern=ID_PATTERN)] = ""
    bus: Annotated[Bus, setting("Bus that the drive is attached to")] = "virtio"
    media: Annotated[Media, setting("Kind of drive")] = "disk"
    cache: Annotated[Cache, setting("Host cache mode")] = "writeback"
    aio: Annotated[Literal["threads", "native", "io_uring"], setting("Host I/O interface")] = (
        "threads"
    )
    discard: Annotated[Literal["unmap", "ignore"], setting("Guest's TRIM reaches the image")] = (
        "unmap"
    )
    detect_zeroes: Annotated[
        Literal["off", "on", "unmap"], setting("Written zeroes are stored as holes")
    ] = "off"
    read_only: Annotated[bool, setting("The guest cannot write")] = False
    discard_writes: Annotated[bool, setting("Writes are lost when the machine stops")] = False
    serial: Annotated[str, text("Serial number", max_length=36)] = ""
    boot_index: Annotated[Index | None, setting("Place in the boot order, lowest first")] = None
    geometry: Annotated[Geometry | None, setting("CHS geometry")] = None
    throttle: Annotated[Throttle | None, setting("Limits")] = None
    on_write_error: Annotated[ErrorAction, setting("What a failed write does to the guest")] = (
        "default"
    )
    on_read_error: Annotated[ErrorAction, setting("What a failed read does to the guest")] = (
        "default"
    )
    bus_index: Annotated[Index | None, setting("Number of the bus or controller")] = None
    unit: Annotated[Index | None, setting("Place on the bus")] = None
    address: Annotated[
        str, text("virtio: PCI slot on the root bus; empty: given by wirt", pattern=SLOT_PATTERN)
    ] = ""
