"""Block nodes of a disk: file, format and, with limits, a throttle filter on top.

::

    drive ── ID-throttle ── ID-format ── ID-file
             (limits)       (qcow2 …)    (file, host_device)

A disk whose writes are discarded has a temporary qcow2 in that place, and the image,
read-only, as its backing: ID-base-format, ID-base-file.

An image that wirt serves (``Runtime.served``) has ``nbd`` in the place of the file and ``raw``
in that of the format; one below an overlay is its backing: ID-below-format, ID-below-file.
"""

from __future__ import annotations

import os

import msgspec

from wirt.errors import SpecError
from wirt.qapi.value import QapiObject
from wirt.qemu.runtime import Runtime, Served
from wirt.spec.disk import Disk, Throttle

FORMATS = (
    "raw", "qcow2", "qcow", "qed", "vdi", "vmdk", "vpc", "vhdx", "parallels", "bochs",
    "cloop", "dmg",
)  # fmt: skip
"""Formats that QEMU opens, by its names."""

_CD_DRIVES = ("/dev/cdrom", "/dev/sr", "/dev/scd", "/dev/dvd")
_HIGHEST_LIMIT = 10**15
_DIRECT = {"none", "directsync"}
_RECONNECT_SECONDS = 15
"""How long a guest's requests wait for a server that was killed to be started again."""


def disk_id(disk: Disk, index: int) -> str:
    """Return the identifier of the drive: also the stem of its node names."""
    return disk.id or f"disk{index}"


def node_name(disk: Disk, index: int) -> str:
    """Return the node that the drive shows: the top of the disk's block graph."""
    stem = disk_id(disk, index)
    return f"{stem}-throttle" if disk.throttle else f"{stem}-format"


def is_read_only(disk: Disk) -> bool:
    """True if QEMU opens the image for reading only."""
    return disk.read_only or disk.media == "cdrom"


def is_removable(disk: Disk) -> bool:
    """True for a drive whose medium can be taken out."""
    return disk.media == "cdrom" or disk.bus == "floppy"


def is_discarding(disk: Disk) -> bool:
    """True if the guest's writes go to an overlay that is thrown away."""
    return disk.discard_writes and not is_read_only(disk)


def fd_set(disk: Disk, index: int, runtime: Runtime) -> QapiObject | None:
    """Return ``-add-fd`` for an image that comes as a descriptor."""
    fd = runtime.fd_paths.get(disk.image)
    return None if fd is None else {"fd": fd, "set": _set_number(index)}


def _set_number(index: int) -> int:
    return index + 1


def limits_objects(disk: Disk, index: int) -> list[QapiObject]:
    """Return the throttle group of the disk, as ``object-add`` takes it."""
    if not disk.throttle:
        return []
    group: QapiObject = {"qom-type": "throttle-group", "id": f"{disk_id(disk, index)}-limits"}
    return [{**group, "limits": throttle_limits(disk.throttle)}]


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


def disk_nodes(disk: Disk, index: int, runtime: Runtime) -> list[QapiObject]:
    """Return the nodes as ``blockdev-add`` takes them, from the file upwards.

    Raises SpecError for a format that QEMU does not open and for settings that exclude
    each other.
    """
    _check(disk, index, runtime)
    stem = disk_id(disk, index)
    if is_discarding(disk):
        nodes = [
            *_image_nodes(disk, index, f"{stem}-base", runtime, read_only=True),
            *_pair(disk, stem, "file", _overlay(index, runtime), "qcow2", read_only=False),
        ]
        nodes[-1]["backing"] = f"{stem}-base-format"
    else:
        nodes = _image_nodes(disk, index, stem, runtime, read_only=is_read_only(disk))
    if disk.throttle:
        nodes.append(_throttle(disk, stem))
    if disk.detect_zeroes != "off":
        nodes[-1]["detect-zeroes"] = disk.detect_zeroes
    return nodes


def overlay_nodes(disk: Disk, stem: str, filename: str) -> list[QapiObject]:
    """Return the nodes of a qcow2 overlay that is laid over a running disk by ``snapshot``."""
    return _pair(disk, stem, "file", filename, "qcow2", read_only=False)


def image_name(disk: Disk, index: int, runtime: Runtime) -> str:
    """Return the file that QEMU opens for the image: its path, or the descriptor's."""
    if disk.image in runtime.fd_paths:
        return f"/dev/fdset/{_set_number(index)}"
    return runtime.path(disk.image)


def _image_nodes(
    disk: Disk, index: int, stem: str, runtime: Runtime, *, read_only: bool
) -> list[QapiObject]:
    served = runtime.served.get(index)
    if served is not None and not served.below:
        return _served_pair(disk, stem, served, read_only=read_only)
    name = image_name(disk, index, runtime)
    driver = _file_driver(disk, name, runtime)
    nodes = _pair(disk, stem, driver, name, disk.format, read_only=read_only)
    if served is None:
        return nodes
    nodes[-1]["backing"] = f"{stem}-below-format"
    return [*_served_pair(disk, f"{stem}-below", served, read_only=True), *nodes]


def _served_pair(disk: Disk, stem: str, served: Served, *, read_only: bool) -> list[QapiObject]:
    server: QapiObject = {
        "driver": "nbd",
        "node-name": f"{stem}-file",
        "server": {"type": "unix", "path": served.socket},
        "export": served.export,
        "reconnect-delay": _RECONNECT_SECONDS,
    }
    image: QapiObject = {"driver": "raw", "node-name": f"{stem}-format", "file": f"{stem}-file"}
    common = _common(disk, read_only=read_only)
    return [{**server, **common}, {**image, **common}]


def _common(disk: Disk, *, read_only: bool) -> QapiObject:
    return {
        "read-only": read_only,
        "discard": disk.discard,
        "cache": {"direct": disk.cache in _DIRECT, "no-flush": disk.cache == "unsafe"},
    }


def _pair(
    disk: Disk, stem: str, driver: str, filename: str, image_format: str, *, read_only: bool
) -> list[QapiObject]:
    common = _common(disk, read_only=read_only)
    file: QapiObject = {
        "driver": driver,
        "node-name": f"{stem}-file",
        "filename": filename,
        "aio": disk.aio,
    }
    image: QapiObject = {
        "driver": image_format,
        "node-name": f"{stem}-format",
        "file": f"{stem}-file",
    }
    return [{**file, **common}, {**image, **common}]


def _throttle(disk: Disk, stem: str) -> QapiObject:
    return {
        "driver": "throttle",
        "node-name": f"{stem}-throttle",
        "throttle-group": f"{stem}-limits",
        "file": f"{stem}-format",
        "read-only": is_read_only(disk),
        "discard": disk.discard,
    }


def _overlay(index: int, runtime: Runtime) -> str:
    if index not in runtime.overlays:
        raise SpecError("cannot be had here", key=f"disks[{index}].discard_writes")
    return runtime.overlays[index]


def _file_driver(disk: Disk, name: str, runtime: Runtime) -> str:
    """Return QEMU's driver for the image; a guest moves tray and door of the host's CD drive."""
    named = os.path.normpath(disk.image).startswith(_CD_DRIVES)
    if disk.media == "cdrom" and (named or disk.image in runtime.cd_drives):
        return "host_cdrom"
    return "host_device" if _is_device(disk, name, runtime) else "file"


def _is_device(disk: Disk, name: str, runtime: Runtime) -> bool:
    files = ("/dev/fdset/", "/dev/shm/")  # noqa: S108 - looked at, not written
    real = os.path.normpath(name)
    named = real.startswith("/dev/") and not real.startswith(files)
    return named or disk.image in runtime.host_devices


def _check(disk: Disk, index: int, runtime: Runtime) -> None:
    key = f"disks[{index}]"
    if disk.format not in FORMATS and index not in runtime.served:
        raise SpecError(
            f"QEMU does not open {disk.format!r} images",
            key=f"{key}.format",
            hint=f"it opens {', '.join(FORMATS)}",
        )
    if disk.aio == "native" and disk.cache not in _DIRECT:
        raise SpecError(
            "native needs the host's cache out of the way",
            key=f"{key}.aio",
            hint='set cache = "none" or "directsync"',
        )
    if disk.detect_zeroes == "unmap" and disk.discard != "unmap":
        raise SpecError('unmap needs discard = "unmap"', key=f"{key}.detect_zeroes")
    if disk.throttle and max(msgspec.structs.astuple(disk.throttle)) > _HIGHEST_LIMIT:
        raise SpecError(f"a limit is at most {_HIGHEST_LIMIT}", key=f"{key}.throttle")
