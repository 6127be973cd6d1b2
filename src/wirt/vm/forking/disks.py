"""The disks of a machine that is frozen: which can be, and what becomes of each.

==================  ======================================================================
read-only, CD       used by all forks; an image in the machine's own directory is copied
                    into the state
writable, its own   frozen where it is, under a second name in the state; machine and forks
                    go on in overlays
writable, a user's  cannot be frozen: the user's file would stop changing
==================  ======================================================================
"""

from __future__ import annotations

import os
import shutil

from wirt.image.overlay import create_overlay
from wirt.qemu.block import disk_id, is_discarding, is_read_only
from wirt.spec.disk import Disk
from wirt.spec.machine import Machine
from wirt.store.atomic import copy_file, host_error, sync_directory
from wirt.store.layout import StatePaths, VmPaths
from wirt.store.record import Record
from wirt.store.states import FrozenDisk
from wirt.vm.firmware import LARGEST_VARIABLES
from wirt.vm.preflight import image_path
from wirt.vm.served import find_served

_QCOW2_MAGIC = b"QFI\xfb"
_SIZE_AT = 24
_SERVED = (
    "has an image that is served to this QEMU only",
    "stop the machine and convert the image: wirt img convert",
)


def obstacles(paths: VmPaths, machine: Machine) -> list[tuple[str, str]]:
    """Return (device and why it cannot be forked, cure) for each disk that cannot."""
    found = []
    served = {image.disk for image in find_served(paths, machine)}
    for index, disk in enumerate(machine.disks):
        problem = _SERVED if index in served else _obstacle(paths, disk)
        if problem:
            found.append((f"disk {disk_id(disk, index)} {problem[0]}", problem[1]))
    return found


def _obstacle(paths: VmPaths, disk: Disk) -> tuple[str, str] | None:
    if not disk.image or is_read_only(disk):
        return None
    if is_discarding(disk):
        return (
            "forgets what is written to it, and so cannot hand it on",
            "set discard_writes = false: the fork itself can be thrown away",
        )
    if not _is_own(paths, disk):
        return (
            f"is {disk.image}, a file of yours that forks would have to stop changing",
            "make the machine on a copy-on-write disk of it: wirt create without --own-disk",
        )
    if disk.format != "qcow2":
        return (
            f"is a {disk.format} image, which cannot stand on a frozen one",
            f"stop the machine and convert it: wirt img convert {disk.image} NEW.qcow2",
        )
    return None


def _is_own(paths: VmPaths, disk: Disk) -> bool:
    path = os.path.realpath(image_path(paths, disk))
    return os.path.dirname(path) == os.path.realpath(paths.disks)


def freeze_disks(
    paths: VmPaths, machine: Machine, state: StatePaths, record: Record
) -> tuple[FrozenDisk, ...]:
    """Give each image its name in the state; the machine's own names stay. Raises HostError."""
    frozen = []
    try:
        for index, disk in enumerate(machine.disks):
            if disk.image and (not is_read_only(disk) or _is_own(paths, disk)):
                frozen.append(_freeze(paths, disk, index, state, record))
        sync_directory(state.root)
    except OSError as error:
        raise host_error(error, error.filename or state.root) from error
    return tuple(frozen)


def freeze_variables(paths: VmPaths, machine: Machine, state: StatePaths, record: Record) -> None:
    """Copy the UEFI variables while the guest stands still. Raises HostError."""
    if machine.firmware.type != "uefi":
        return
    copy_file(paths.uefi_variables, state.uefi_variables, limit=LARGEST_VARIABLES, durable=False)
    try:
        let_family_read(state.uefi_variables, record)
    except OSError as error:
        raise host_error(error, state.uefi_variables) from error


def _freeze(
    paths: VmPaths, disk: Disk, index: int, state: StatePaths, record: Record
) -> FrozenDisk:
    path, target = image_path(paths, disk), state.disk(index, disk.format)
    shared = is_read_only(disk)
    if shared:
        _copy(path, target, record)
    else:
        os.link(path, target)
        let_family_read(target, record)
    name = os.path.basename(target)
    sync_data(path)
    return FrozenDisk(index, name, disk.format, virtual_size(path, disk.format), shared)


def _copy(source: str, target: str, record: Record) -> None:
    shutil.copyfile(source, target)
    sync_data(target)
    let_family_read(target, record)


def sync_data(path: str) -> None:
    """Write to disk what the host keeps of a file: QEMU, stopping, would wait for that."""
    with open(path, "rb") as file:
        os.fdatasync(file.fileno())


def let_family_read(path: str, record: Record, *, write: bool = False) -> None:
    """Let the QEMUs of the family read a file that its owner may still write."""
    if record.group:
        os.chown(path, -1, record.group)
        os.chmod(path, 0o660 if write else 0o640)


def virtual_size(path: str, image_format: str) -> int:
    """Return the size that the guest sees, also of an image that QEMU has open."""
    if image_format == "raw":
        return os.stat(path).st_size
    if image_format == "qcow2":
        with open(path, "rb") as file:
            head = file.read(_SIZE_AT + 8)
        if head[:4] == _QCOW2_MAGIC and len(head) == _SIZE_AT + 8:
            return int.from_bytes(head[_SIZE_AT:], "big")
    from wirt.image.open import open_image  # every format: only for what is not of ours

    with open_image(path, format=image_format, force_share=True, with_backing=False) as image:
        return image.virtual_size


def make_overlay(
    target: str, frozen: FrozenDisk, state: StatePaths, *, durable: bool = True
) -> None:
    """Make an empty image over a frozen one; not ``durable`` for who ends with its QEMU.

    Raises ImageError.
    """
    create_overlay(
        target,
        frozen.virtual_size,
        backing=os.path.join(state.root, frozen.file),
        backing_format=frozen.format,
        durable=durable,
    )
