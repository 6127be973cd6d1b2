"""Block nodes of a disk: file, format and, with limits, a throttle filter on top.

::

    drive ── ID-throttle ── ID-format ── ID-file
             (limits)       (qcow2 …)    (file, host_device)
"""

from __future__ import annotations

import os

from wirt.errors import SpecError
from wirt.qapi.value import QapiObject
from wirt.qemu.runtime import Runtime
from wirt.spec.disk import Disk, Throttle

FORMATS = (
    "raw", "qcow2", "qcow", "qed", "vdi", "vmdk", "vpc", "vhdx", "parallels", "bochs",
    "cloop", "dmg",
)  # fmt: skip
"""Formats that QEMU opens, by its names."""

_DIRECT = {"none", "directsync"}


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
    _check(disk, index)
    name, kind = _file(disk, index, runtime)
    stem = disk_id(disk, index)
    common: QapiObject = {"read-only": is_read_only(disk), "discard": disk.discard}
    cache: QapiObject = {"direct": disk.cache in _DIRECT, "no-flush": disk.cache == "unsafe"}
    nodes: list[QapiObject] = [
        {
            "driver": "host_device" if _is_device(disk, name, runtime) else "file",
            "node-name": f"{stem}-file",
            "filename": name,
            "aio": disk.aio,
            **common,
            "cache": cache,
        },
        {
            "driver": kind,
            "node-name": f"{stem}-format",
            "file": f"{stem}-file",
            **common,
            "cache": cache,
        },
    ]
    if disk.throttle:
        throttle: QapiObject = {
            "driver": "throttle",
            "node-name": f"{stem}-throttle",
            "throttle-group": f"{stem}-limits",
            "file": f"{stem}-format",
        }
        nodes.append({**throttle, **common})
    if disk.detect_zeroes != "off":
        nodes[-1]["detect-zeroes"] = disk.detect_zeroes
    return nodes


def _file(disk: Disk, index: int, runtime: Runtime) -> tuple[str, str]:
    if disk.discard_writes:
        overlay = runtime.overlays.get(index)
        if overlay is None:
            raise SpecError(
                "cannot be had here", key=f"disks[{index}].discard_writes", hint="leave it out"
            )
        return overlay, "qcow2"
    if disk.image in runtime.fd_paths:
        return f"/dev/fdset/{_set_number(index)}", disk.format
    return runtime.path(disk.image), disk.format


def _is_device(disk: Disk, name: str, runtime: Runtime) -> bool:
    if disk.discard_writes:
        return False
    files = ("/dev/fdset/", "/dev/shm/")  # noqa: S108 - looked at, not written
    real = os.path.normpath(name)
    named = real.startswith("/dev/") and not real.startswith(files)
    return named or disk.image in runtime.host_devices


def _check(disk: Disk, index: int) -> None:
    key = f"disks[{index}]"
    if disk.format not in FORMATS:
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
