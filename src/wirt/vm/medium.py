"""What lies in a machine's CD and floppy drives: put in, changed and taken out, also while it runs.

A running machine is brought to it in steps: the new image is opened beside the old one, the
tray is opened, and only then, when nothing can refuse any more, the description says what the
next start shows. What QEMU was started with (``VmPaths.started``) follows: killed at any moment,
a drive is taken for empty at worst, never to hold another disc than it does.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence

import msgspec

from wirt.errors import AmbiguousFormat, CommandRefused, NotFound, QemuError, UsageError, WrongState
from wirt.host.failpoint import failpoint
from wirt.image.probe import probe_file
from wirt.protocols.qmp.client import QmpClient
from wirt.protocols.qmp.messages import BlockInfo, BlockNodeInfo, FdsetAdded, StatusInfo
from wirt.qapi.value import QapiObject
from wirt.qemu.block import (
    disk_id,
    disk_nodes,
    is_discarding,
    is_removable,
    limits_objects,
    node_name,
)
from wirt.qemu.runtime import Runtime
from wirt.spec.disk import Disk
from wirt.spec.machine import Machine
from wirt.store.atomic import write_file
from wirt.store.layout import VmPaths
from wirt.store.machines import locked, read_spec
from wirt.store.record import Record, read_record
from wirt.vm import ownership, preflight, state
from wirt.vm.context import Context
from wirt.vm.description import load_spec, load_started
from wirt.vm.edit import assigned, replace_locked
from wirt.vm.monitor import connect
from wirt.vm.served import beyond_qemu, find_served

_LET_GO_SECONDS = 20.0
"""A guest looks every two seconds whether somebody wants its disc."""
_POLL_SECONDS = 0.1
_NODES = ("throttle", "format", "file")
"""The nodes of a drive, from the top."""


class Changed(msgspec.Struct, frozen=True):
    """What a drive holds now, and held before; "": nothing."""

    drive: str
    image: str
    format: str
    before: str


def insert(
    context: Context,
    name: str,
    image: str,
    *,
    drive: str = "",
    image_format: str = "",
    force: bool = False,
) -> Changed:
    """Put an image into a drive, in place of what is in it.

    ``drive`` may be left out where it is clear. ``force`` takes a disc from a guest that holds
    it. Raises NotFound, UsageError, ImageError, WrongState, HostError, QemuError.
    """
    path = os.path.abspath(image)
    found = image_format or _require_raw(path)
    with locked(context.home, name, waiting=context.say) as paths:
        return _change(paths, drive, path, found, force=force)


def _require_raw(path: str) -> str:
    """Return ``raw``; another format must be named, for a guest may have written the bytes."""
    found = probe_file(path)
    if found != "raw":
        raise AmbiguousFormat(
            f"this looks like a {found} image",
            path=path,
            hint=f"say so: --format {found}; or --format raw, if a guest may have written that",
        )
    return found


def eject(context: Context, name: str, *, drive: str = "", force: bool = False) -> Changed:
    """Empty a drive. Raises NotFound, UsageError, WrongState, QemuError."""
    with locked(context.home, name, waiting=context.say) as paths:
        return _change(paths, drive, "", "", force=force)


def _change(paths: VmPaths, drive: str, image: str, found: str, *, force: bool) -> Changed:
    machine = load_spec(paths)
    index = _find_drive(machine, drive)
    old = machine.disks[index]
    new = msgspec.structs.replace(old, image=image, format=found or old.format)
    values = {f"disks[{index}].image": image, f"disks[{index}].format": new.format}
    text = assigned(read_spec(paths), values)
    name = disk_id(old, index)
    if state.look(paths, ask=False).is_up:
        _Running(paths, read_record(paths.record), name, force=force).change(new, text)
    else:
        replace_locked(paths, text)
    return Changed(name, image, new.format if image else "", old.image)


def _find_drive(machine: Machine, name: str) -> int:
    """Return the index of the drive that is meant. Raises NotFound, UsageError."""
    removable = {
        disk_id(disk, index): index
        for index, disk in enumerate(machine.disks)
        if is_removable(disk)
    }
    if not removable:
        raise NotFound(
            f"{machine.name} has no CD or floppy drive",
            hint=f"add one, with media = 'cdrom' and bus = 'sata': wirt edit {machine.name}",
        )
    if name:
        if name in removable:
            return removable[name]
        raise NotFound(
            f"{machine.name} has no CD or floppy drive {name[:40]!r}",
            hint=f"it has: {', '.join(removable)}",
        )
    cds = [index for index in removable.values() if machine.disks[index].media == "cdrom"]
    meant = cds or list(removable.values())
    if len(meant) > 1:
        raise UsageError(
            f"{machine.name} has several drives", hint=f"--drive {', '.join(removable)}"
        )
    return meant[0]


class _Running:
    """A drive of a machine that is up; the caller holds its lock."""

    def __init__(self, paths: VmPaths, record: Record, name: str, *, force: bool) -> None:
        self._paths = paths
        self._record = record
        self._name = name
        self._stems = (name, f"{name}.1")
        """An image is opened under one while the drive shows another under the other."""
        self._force = force
        self._machine = load_started(paths)
        names = [disk_id(disk, index) for index, disk in enumerate(self._machine.disks)]
        if name not in names:
            raise WrongState(
                f"{paths.name} runs without the drive {name}", hint=f"wirt restart {paths.name}"
            )
        self._index = names.index(name)
        if any(one.disk == self._index for one in find_served(paths, self._machine)):
            raise self._only_when_down("the disc in it is served to QEMU by wirt")

    def change(self, new: Disk, text: str) -> None:
        """Change the medium, and the description to ``text`` when nothing can refuse it."""
        with connect(self._paths, self._record) as qmp:
            self._drop_unused(qmp)
            with self._opened(qmp, new) as top:
                self._open_tray(qmp)
                replace_locked(self._paths, text)
                failpoint("medium-described")
                qmp.execute("blockdev-remove-medium", {"id": self._name})
                self._remember(msgspec.structs.replace(new, image=""))
                failpoint("medium-removed")
                if top:
                    qmp.execute("blockdev-insert-medium", {"id": self._name, "node-name": top})
                    failpoint("medium-inserted")
                    qmp.execute("blockdev-close-tray", {"id": self._name})
                    self._remember(new)
            self._drop_unused(qmp)

    @contextlib.contextmanager
    def _opened(self, qmp: QmpClient, new: Disk) -> Iterator[str]:
        """Let QEMU open the image; yield its top node, "" for none."""
        if not new.image:
            yield ""
            return
        if is_discarding(new):
            raise self._only_when_down("what is written to it is kept beside it")
        why, _ = beyond_qemu(new.image, new.format)
        if why:
            raise self._only_when_down(f"{why}, so wirt must serve the image")
        single = msgspec.structs.replace(self._machine, disks=(new,))
        preflight.check_images(self._paths, single)
        ownership.require_reachable(self._paths, single, self._record)
        try:
            yield self._add(qmp, new, single)
        except BaseException:
            with contextlib.suppress(CommandRefused):
                self._drop_unused(qmp)
            raise

    def _add(self, qmp: QmpClient, new: Disk, single: Machine) -> str:
        stem = self._free_stem(qmp)
        devices = preflight.host_devices(self._paths, single)
        cd_drives = preflight.cd_drives(self._paths, single)
        opened = ownership.descriptors_needed(self._paths, single, self._record)
        try:
            shown = msgspec.structs.replace(new, id=stem)
            for fd, _ in opened.values():
                number = qmp.execute("add-fd", reply=FdsetAdded, fds=[fd]).fdset_id
                file = f"/dev/fdset/{number}"
                devices = frozenset({file}) if devices else devices
                cd_drives = frozenset({file}) if cd_drives else cd_drives
                shown = msgspec.structs.replace(shown, image=file)
            runtime = Runtime(
                accelerator="", directory=self._paths.root, socket=self._paths.socket,
                host_devices=devices, cd_drives=cd_drives,
            )  # fmt: skip
            _send(qmp, "object-add", limits_objects(shown, 0))
            _send(qmp, "blockdev-add", disk_nodes(shown, 0, runtime))
        except CommandRefused as error:
            raise QemuError(
                f"QEMU cannot use {new.image}: {error.description}",
                hint="is its format right (--format), and does nobody else write it?",
            ) from error
        finally:
            ownership.close_all(opened)
        return node_name(shown, 0)

    def _free_stem(self, qmp: QmpClient) -> str:
        """Return the names that the medium of now does not have."""
        nodes = qmp.execute("query-named-block-nodes", {"flat": True}, reply=list[BlockNodeInfo])
        taken = {one.node_name for one in nodes}
        return next(stem for stem in self._stems if f"{stem}-file" not in taken)

    def _open_tray(self, qmp: QmpClient) -> None:
        """Open the tray; a guest that has locked it is asked to. Raises WrongState."""
        qmp.execute("blockdev-open-tray", {"id": self._name, "force": self._force})
        running = qmp.execute("query-status", reply=StatusInfo).running
        deadline = time.monotonic() + (_LET_GO_SECONDS if running else 0)
        while not self._is_open(qmp):
            if time.monotonic() > deadline:
                raise WrongState(
                    f"the guest of {self._paths.name} does not let go of what is in {self._name}: "
                    + ("it has mounted it, or it does not look" if running else "it is paused"),
                    hint="unmount it in the guest; or take it away all the same: --force",
                )
            time.sleep(_POLL_SECONDS)

    def _is_open(self, qmp: QmpClient) -> bool:
        for drive in qmp.execute("query-block", reply=list[BlockInfo]):
            if self._name in drive.qdev.split("/"):
                return drive.tray_open is not False
        raise QemuError(f"QEMU has no drive {self._name}")

    def _remember(self, disk: Disk) -> None:
        disks = list(self._machine.disks)
        disks[self._index] = disk
        machine = msgspec.structs.replace(self._machine, disks=tuple(disks))
        write_file(self._paths.started, msgspec.json.encode(machine), durable=False)

    def _drop_unused(self, qmp: QmpClient) -> None:
        """Close what the drive does not show: its last medium, or what a killed command left."""
        for stem in self._stems:
            for part in _NODES:
                with contextlib.suppress(CommandRefused):  # it is in use, or not there
                    qmp.execute("blockdev-del", {"node-name": f"{stem}-{part}"})
            with contextlib.suppress(CommandRefused):
                qmp.execute("object-del", {"id": f"{stem}-limits"})

    def _only_when_down(self, why: str) -> WrongState:
        return WrongState(
            f"{self._name} of {self._paths.name} cannot be changed while it runs: {why}",
            hint=f"wirt stop {self._paths.name}, then again",
        )


def _send(qmp: QmpClient, command: str, values: Sequence[QapiObject]) -> None:
    for value in values:
        qmp.execute(command, value)
