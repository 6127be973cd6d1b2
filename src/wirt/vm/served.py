"""Which images QEMU cannot open, or would show wrong: wirt serves them, see docs/adr.

Decided by format and content. A disk's own image may be one, or the image that its overlay
(a qcow2 of ours) names.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping

import msgspec

from wirt.errors import ImageError, UsageError
from wirt.image.base import Image, WritableImage
from wirt.image.gate import Neighbours
from wirt.qemu.block import FORMATS, disk_id, is_discarding, is_read_only
from wirt.qemu.runtime import Served
from wirt.spec.disk import Disk
from wirt.spec.machine import Machine
from wirt.store.layout import VmPaths
from wirt.store.record import ServedImage
from wirt.vm.preflight import image_path

SOCKET = "disks"
_PARENTS_IGNORED = {"vpc": "ignores the parent of a differencing VHD"}
_PARENTS_REFUSED = {"vhdx", "vdi"}


def find_served(paths: VmPaths, machine: Machine) -> tuple[ServedImage, ...]:
    """Return the images of the machine that must be served. Raises UsageError."""
    found = [_served(paths, disk, index) for index, disk in enumerate(machine.disks)]
    return tuple(one for one in found if one is not None)


def as_served(machine: Machine, served: Collection[ServedImage]) -> Machine:
    """Return ``machine`` with the disks read-only that cannot be written."""
    fixed = {one.disk for one in served if one.read_only and not one.below}
    disks = tuple(
        msgspec.structs.replace(disk, read_only=True)
        if index in fixed and not is_discarding(disk)
        else disk
        for index, disk in enumerate(machine.disks)
    )
    return msgspec.structs.replace(machine, disks=disks)


def sockets(
    paths: VmPaths, machine: Machine, served: Collection[ServedImage]
) -> Mapping[int, Served]:
    """Return where QEMU finds the served images, by the indexes of their disks."""
    return {
        one.disk: Served(paths.socket(SOCKET), export_name(machine, one), below=one.below)
        for one in served
    }


def export_name(machine: Machine, image: ServedImage) -> str:
    """Return the name of the image's export: that of its drive."""
    return disk_id(machine.disks[image.disk], image.disk)


def _served(paths: VmPaths, disk: Disk, index: int) -> ServedImage | None:
    path = image_path(paths, disk)
    if (
        not disk.image
        or disk.format == "raw"
        or disk.format.startswith("host_")
        or not os.path.exists(path)
    ):
        return None
    if disk.format == "qcow2":
        return _below(path, index)
    why, can_write = beyond_qemu(path, disk.format)
    read_only = is_read_only(disk) or disk.discard_writes or not can_write
    return ServedImage(index, path, disk.format, why, read_only) if why else None


def _below(overlay: str, index: int) -> ServedImage | None:
    """Return the image that an overlay names, if QEMU could not open it."""
    from wirt.image.open import open_image

    try:
        with open_image(overlay, format="qcow2", with_backing=False, force_share=True) as image:
            info = image.info()
    except ImageError:
        return None  # QEMU says what is wrong with it
    if info.backing_format in {"", "raw", "qcow2"}:
        return None
    path = os.path.join(os.path.dirname(overlay), info.backing_name.removeprefix("file:"))
    why, _ = beyond_qemu(path, info.backing_format)
    return ServedImage(index, path, info.backing_format, why, True, True) if why else None


def beyond_qemu(path: str, image_format: str) -> tuple[str, bool]:
    """Return why QEMU cannot have this image by itself ("": it can), and if it can be written.

    Raises UsageError for a format that nobody knows.
    """
    from wirt.image.open import open_image

    unknown = "" if image_format in FORMATS else f"QEMU has no driver for {image_format}"
    try:
        with open_image(
            path, format=image_format, gate=Neighbours(), with_backing=False, force_share=True
        ) as image:
            return unknown or _problem(image), isinstance(image, WritableImage)
    except ImageError:
        if unknown:
            raise
        return "", True  # QEMU may know better; it says so if not


def _problem(image: Image) -> str:
    """Return what QEMU lacks for an image of a format that it has."""
    info, name = image.info(), image.format_name
    if name == "dmg":
        return "QEMU lacks most compressions of dmg"
    if info.backing_name and name in _PARENTS_IGNORED:
        return f"QEMU {_PARENTS_IGNORED[name]}"
    if info.backing_name and name in _PARENTS_REFUSED:
        return f"QEMU cannot open the parent of a {name} image"
    if name == "vhdx" and info.dirty:
        return "QEMU cannot read through a log that was not replayed"
    if name == "vmdk" and "seSparse" in str(info.specific.get("create-type")):
        return "QEMU only reads some seSparse disks"
    return ""


def can_be_served(path: str, image_format: str) -> bool:
    """Return whether the image is one to be served, and its parents lie where they may."""
    from wirt.image.open import open_image

    with contextlib.suppress(ImageError, UsageError):
        if beyond_qemu(path, image_format)[0]:
            open_image(path, format=image_format, gate=Neighbours(), force_share=True).close()
            return True
    return False
