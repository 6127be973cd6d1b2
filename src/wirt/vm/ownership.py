"""Under root, QEMU runs as an unprivileged uid of the machine's own; its files follow.

The directory of the machine, its description and its record stay root's: a QEMU that a
guest took over must not be able to change what wirt starts next.
"""

from __future__ import annotations

import os
import secrets
import stat

from wirt.errors import HostError
from wirt.host.confine import vm_uid
from wirt.spec.machine import Machine
from wirt.store.atomic import host_error
from wirt.store.layout import Home, VmPaths, private_directory
from wirt.store.machines import machine_names
from wirt.store.record import Record, read_record
from wirt.vm.preflight import image_path

_UIDS = 65536


def choose_uid(home: Home) -> int:
    """Return a uid that no other machine of this home has; 0 when not root."""
    if os.geteuid() != 0:
        return 0
    used = {read_record(home.vm(name).record).uid for name in machine_names(home)}
    for _ in range(10 * _UIDS):
        uid = vm_uid(secrets.randbelow(_UIDS))
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
    """Make the VM's uid the owner of its images and logs."""
    if not record.uid:
        return
    try:
        for directory in (paths.disks, paths.log):
            for root, _, files in os.walk(directory):
                os.chown(root, record.uid, record.uid)
                for name in files:
                    os.chown(
                        os.path.join(root, name), record.uid, record.uid, follow_symlinks=False
                    )
    except OSError as error:
        raise host_error(error, paths.root) from error


def descriptors_needed(
    paths: VmPaths, machine: Machine, record: Record
) -> dict[str, tuple[int, bool]]:
    """Open the images that the VM's uid cannot reach.

    Returns path → (descriptor, read-only); the caller closes them. A user's own file is
    handed to QEMU as a descriptor instead of changing its owner or mode.
    """
    if not record.uid:
        return {}
    opened: dict[str, tuple[int, bool]] = {}
    for disk in machine.disks:
        path = image_path(paths, disk)
        read_only = disk.read_only or disk.media == "cdrom"
        if not disk.image or reachable(path, record.uid, write=not read_only):
            continue
        flags = os.O_RDONLY if read_only else os.O_RDWR
        try:
            opened[disk.image] = (os.open(path, flags | os.O_CLOEXEC), read_only)
        except OSError as error:
            close_all(opened)
            raise host_error(error, path) from error
    return opened


def close_all(opened: dict[str, tuple[int, bool]]) -> None:
    """Close what ``descriptors_needed`` opened."""
    for fd, _ in opened.values():
        os.close(fd)


def reachable(path: str, uid: int, *, write: bool) -> bool:
    """True if ``uid``, a member of no group, can open ``path``."""
    path = os.path.realpath(path)
    want = stat.S_IROTH | (stat.S_IWOTH if write else 0)
    if not _grants(path, uid, want):
        return False
    while path != "/":
        path = os.path.dirname(path)
        if not _grants(path, uid, stat.S_IXOTH):
            return False
    return True


def _grants(path: str, uid: int, want: int) -> bool:
    info = os.stat(path)
    if info.st_uid == uid:
        want <<= 6
    return info.st_mode & want == want
