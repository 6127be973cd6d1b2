"""Under root, QEMU runs as an unprivileged uid of the machine's own; its files follow.

The directory of the machine, its description and its record stay root's: a QEMU that a
guest took over must not be able to change what wirt starts next.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection

from wirt.errors import HostError
from wirt.host.confine import switch_uid, vm_uid
from wirt.qemu.block import is_read_only
from wirt.spec.machine import Machine
from wirt.store.atomic import host_error
from wirt.store.layout import Home, VmPaths, private_directory
from wirt.store.machines import machine_names
from wirt.store.record import Record, read_record
from wirt.vm.preflight import image_path

_UIDS = 1 << 16


def choose_uid(home: Home) -> int:
    """Return a uid that no other machine of this home has; 0 when not root."""
    if os.geteuid() != 0:
        return 0
    records = [read_record(home.vm(name).record) for name in machine_names(home)]
    used = {record.uid for record in records} | {record.group for record in records}
    used.add(switch_uid())
    for _ in range(10 * _UIDS):
        uid = vm_uid(int.from_bytes(os.urandom(2)))
        if uid not in used:
            return uid
    raise HostError("every uid of wirt's range is taken by a machine")


def make_runtime(paths: VmPaths, record: Record) -> str:
    """Make the directory of the sockets anew. Returns its path."""
    import shutil

    path = paths.runtime
    shutil.rmtree(path, ignore_errors=True)
    private_directory(path)
    if record.uid:
        os.chown(path, record.uid, record.uid)
    return path


def give(paths: VmPaths, record: Record) -> None:
    """Make the VM's uid the owner of its images, logs and TPM."""
    if not record.uid:
        return
    try:
        for directory in (paths.disks, paths.log, paths.tpm):
            for root, _, files in os.walk(directory):
                os.chown(root, record.uid, record.uid)
                for name in files:
                    os.chown(
                        os.path.join(root, name), record.uid, record.uid, follow_symlinks=False
                    )
    except OSError as error:
        raise host_error(error, paths.root) from error


def require_reachable(
    paths: VmPaths, machine: Machine, record: Record, served: Collection[int] = ()
) -> None:
    """Refuse files that the VM's uid cannot come to, before QEMU fails on them.

    ``served`` are the indexes of the disks of which QEMU opens only the overlay, or nothing.
    """
    if not record.uid:
        return
    closed = closed_directory(paths.disks, record.uid)
    if closed:
        raise HostError(
            f"QEMU runs as uid {record.uid}, which may not pass {closed} to {paths.root}",
            hint=f"chmod o+x {closed}, or set WIRT_HOME to a place where every user may pass",
        )
    for index, disk in enumerate(machine.disks):
        if not disk.image or index in served:
            continue
        for backing in _backing_files(image_path(paths, disk), disk.format):
            if not reachable(backing, record.uid, group=record.group, write=False):
                raise HostError(
                    f"QEMU runs as uid {record.uid}, which cannot read {backing}",
                    hint=f"wirt pull {backing} makes a shared image of it; or --own-disk",
                )


def _backing_files(path: str, image_format: str) -> list[str]:
    """Return the files below an overlay of ours; reading is all that is done with them."""
    found: list[str] = []
    if image_format != "qcow2":
        return found
    from wirt.image.base import AllowLocalFiles
    from wirt.image.open import open_image

    with open_image(path, format="qcow2", gate=AllowLocalFiles(), force_share=True) as image:
        below = image.backing
        while below is not None:
            found.append(below.storage.name)
            below = below.backing
    return found


def descriptors_needed(
    paths: VmPaths, machine: Machine, record: Record, served: Collection[int] = ()
) -> dict[str, tuple[int, bool]]:
    """Open the images that the VM's uid cannot reach, but for the disks ``served``.

    Returns path → (descriptor, read-only); the caller closes them. A user's own file is
    handed to QEMU as a descriptor instead of changing its owner or mode.
    """
    if not record.uid:
        return {}
    opened: dict[str, tuple[int, bool]] = {}
    for disk in (one for index, one in enumerate(machine.disks) if index not in served):
        path = image_path(paths, disk)
        read_only = is_read_only(disk) or disk.discard_writes
        if not disk.image or reachable(path, record.uid, write=not read_only):
            continue
        flags = os.O_RDONLY if read_only else os.O_RDWR
        try:
            # A CD drive that is opened so may be empty, and its guest may open it.
            fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
            opened[disk.image] = (fd, read_only)
        except OSError as error:
            close_all(opened)
            raise host_error(error, path) from error
    return opened


def close_all(opened: dict[str, tuple[int, bool]]) -> None:
    """Close what ``descriptors_needed`` opened."""
    for fd, _ in opened.values():
        os.close(fd)


def reachable(path: str, uid: int, *, group: int = 0, write: bool) -> bool:
    """True if ``uid``, a member of no group but ``group``, can open ``path``."""
    path = os.path.realpath(path)
    want = stat.S_IROTH | (stat.S_IWOTH if write else 0)
    return _grants(path, uid, want, group) and not closed_directory(path, uid)


def closed_directory(path: str, uid: int) -> str:
    """Return the first directory above ``path`` that ``uid`` may not pass, or ""."""
    path = os.path.realpath(path)
    while path != "/":
        path = os.path.dirname(path)
        if not _grants(path, uid, stat.S_IXOTH):
            return path
    return ""


def _grants(path: str, uid: int, want: int, group: int = 0) -> bool:
    info = os.stat(path)
    if info.st_uid == uid:
        want <<= 6
    elif group and info.st_gid == group:
        want <<= 3
    return info.st_mode & want == want
