"""Making a machine or a snapshot stand by itself, so that the states below it can go.

Of a machine that is down, each disk gets a new file beside the old one, whose name it takes when
it is whole; of one that runs, QEMU itself writes into the disk what lies below it. Either way the
guest's bytes are the same before and after every step, so a command that is killed leaves a
machine that is right: only when all disks are done, its record lets go of the state.

A snapshot's state is treated likewise: what stands on it finds the same bytes under the same name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from functools import partial

import msgspec

from wirt.errors import NoSpace, QemuError, WrongState
from wirt.host.failpoint import failpoint
from wirt.image.base import Image
from wirt.image.collapse import collapse, needed_space
from wirt.image.formats.qcow2.image import Qcow2Image
from wirt.image.layers import layers
from wirt.image.open import open_image
from wirt.image.progress import Progress, silent
from wirt.qemu.block import disk_id, is_discarding, is_read_only
from wirt.spec.machine import Machine
from wirt.store.atomic import host_error, sync_directory
from wirt.store.layout import Home, VmPaths
from wirt.store.machines import find, locked, read_spec
from wirt.store.record import Record, read_record, write_record
from wirt.store.snapshots import read_snapshot
from wirt.store.states import State, collect, replace_manifest, state_ids, using
from wirt.units import format_size
from wirt.vm import state
from wirt.vm.block_jobs import Connect, drop_below, end_jobs, streamed
from wirt.vm.chain import AsItsQemu, open_disk, status_of
from wirt.vm.context import Context
from wirt.vm.description import load_spec, load_started
from wirt.vm.edit import assigned, replace_locked
from wirt.vm.family import blocks
from wirt.vm.forking.disks import sync_data
from wirt.vm.forking.handover import beside, clear_beside, recover
from wirt.vm.forking.stream import top_nodes
from wirt.vm.monitor import connect
from wirt.vm.ownership import give
from wirt.vm.preflight import image_path

_KEPT_FREE = 64 << 20
"""Bytes that are left to others on the host's disk."""


class Kept(msgspec.Struct, frozen=True):
    """What stands by itself now. Sizes in bytes."""

    name: str
    """A machine, or ``VM:SNAPSHOT``."""
    disks: tuple[str, ...]
    """Those that were changed; none if it stood by itself already."""
    on_disk: int
    """What they take now."""
    removed: tuple[str, ...]
    """States that nobody needed any more."""
    stands_on: tuple[str, ...] = ()
    """Guest images, which are nobody's state, that the disks are still overlays of."""


class _Overlay(msgspec.Struct, frozen=True):
    """A disk that stands on states: where it lies, and what it will stand on."""

    name: str
    path: str
    depth: int | None
    """The layer of its chain that it will stand on; None for nothing."""
    base: str
    """Where that is."""
    space: int
    """What that may take, in bytes."""


def keep(context: Context, name: str, *, alone: bool = False, progress: Progress = silent) -> Kept:
    """Make a machine, or a snapshot (``VM:NAME``), independent of all states below it.

    It goes on standing on the guest image that it was made from; with ``alone`` on nothing.
    A machine that runs goes on running. Raises NotFound, NoSpace, WrongState, ImageError,
    QemuError; then all is as before.
    """
    before = set(state_ids(context.home))
    machine, colon, snapshot = name.partition(":")
    with locked(context.home, machine, waiting=context.say) as paths:
        record = recover(context, paths)
        find(context.home, machine)
        if colon:
            with using(context.home, read_snapshot(paths, snapshot).state) as known:
                done = _keep_state(context, name, known, alone=alone, progress=progress)
            let_go = known.manifest.parent
        else:
            done = _keep_machine(context, paths, record, alone=alone, progress=progress)
            let_go = record.state
    if let_go:
        collect(context.home, let_go)
    gone = before - set(state_ids(context.home))
    return msgspec.structs.replace(done, removed=tuple(sorted(gone)))


def _keep_machine(
    context: Context, paths: VmPaths, record: Record, *, alone: bool, progress: Progress
) -> Kept:
    up = state.look(paths, ask=False).is_up
    machine = load_started(paths) if up else load_spec(paths)
    gate = AsItsQemu(context.home, record.uid, record.group)
    copied = [disk_id(machine.disks[index], index) for index, _ in _shared(context.home, machine)]
    if up and copied:
        raise _not_while_it_runs(paths)
    if copied:
        machine = _with_own_copies(context.home, paths, machine)
    overlays = _overlays(context.home, paths, machine, gate, running=up, alone=alone)
    _require_space(paths.disks, sum(one.space for one in overlays))
    if up:
        _keep_running(paths, record, machine, overlays, progress)
    else:
        _keep_stopped(paths, gate, overlays, progress)
        give(paths, record)
    record = read_record(paths.record)
    if record.state:
        write_record(paths.record, msgspec.structs.replace(record, state="", group=0))
        failpoint("keep-recorded")
    return _done(paths.name, overlays, copied)


def _done(name: str, overlays: list[_Overlay], copied: list[str]) -> Kept:
    return Kept(
        name,
        tuple(dict.fromkeys([one.name for one in overlays] + copied)),
        blocks([one.path for one in overlays]),
        (),
        tuple(sorted({one.base for one in overlays if one.base})),
    )


def _overlays(
    home: Home, paths: VmPaths, machine: Machine, gate: AsItsQemu, *, running: bool, alone: bool
) -> list[_Overlay]:
    """Return the disks that stand on states; also overlays that the description left out."""
    found = []
    images = {image_path(paths, disk): disk_id(disk, index)
              for index, disk in enumerate(machine.disks)
              if disk.image and disk.format == "qcow2"}  # fmt: skip
    described = {image_path(paths, disk) for disk in machine.disks if disk.image}
    for file in sorted(os.listdir(paths.disks)):
        path = os.path.join(paths.disks, file)
        if file.endswith(".qcow2") and not file.startswith(".") and path not in described:
            images[path] = file
    for path, name in images.items():
        if _is_below(path, home.states):
            continue
        with open_disk(path, "qcow2", gate, running=running) as image:
            overlay = _overlay(home, name, path, image, alone=alone)
        if overlay is not None:
            found.append(overlay)
    return found


def _overlay(home: Home, name: str, path: str, image: Image, *, alone: bool) -> _Overlay | None:
    """Return what is to be done about a disk; None if nothing."""
    below = [layer.storage.name for layer in list(layers(image))[1:]]
    on_states = [_is_below(one, home.states) for one in below]
    if not (any(on_states) or (alone and below)):
        return None
    if isinstance(image, Qcow2Image) and (image.snapshots() or image.bitmaps()):
        raise WrongState(
            f"{path} has snapshots or bitmaps inside, which would be lost",
            hint="remove them first: wirt img snapshot, wirt img bitmap",
        )
    outside = [] if alone else [depth for depth, is_state in enumerate(on_states) if not is_state]
    depth = outside[0] + 1 if outside else None
    base = below[depth - 1] if depth else ""
    return _Overlay(name, path, depth, base, needed_space(image, depth))


def _is_below(path: str, directory: str) -> bool:
    return os.path.realpath(path).startswith(os.path.realpath(directory) + os.sep)


def _shared(home: Home, machine: Machine) -> list[tuple[int, str]]:
    """Return index and file of the disks that are read from a state's directory."""
    return [
        (index, disk.image)
        for index, disk in enumerate(machine.disks)
        if disk.image and os.path.isabs(disk.image) and _is_below(disk.image, home.states)
    ]


def _require_space(directory: str, needed: int) -> None:
    facts = os.statvfs(directory)
    free = facts.f_bavail * facts.f_frsize
    if needed + _KEPT_FREE > free:
        raise NoSpace(
            f"up to {format_size(needed)} would be written and {format_size(_KEPT_FREE)} left "
            f"free, and {format_size(free)} are free",
            hint="free space: wirt images, wirt ls, df -h; or keep the states",
        )


def _with_own_copies(home: Home, paths: VmPaths, machine: Machine) -> Machine:
    """Give a machine that is down its own copies of what it reads from states."""
    values = {}
    try:
        for index, source in _shared(home, machine):
            name = _free_name(paths, f"disk{index}", os.path.splitext(source)[1])
            _require_space(paths.disks, status_of(source).st_size)
            _copy(source, beside(paths, name), os.path.join(paths.disks, name))
            values[f"disks[{index}].image"] = os.path.join("disks", name)
    except BaseException:
        clear_beside(paths)
        raise
    return replace_locked(paths, assigned(read_spec(paths), values))


def _free_name(paths: VmPaths, stem: str, suffix: str) -> str:
    taken = set(os.listdir(paths.disks))
    names = (f"{stem}{more}{suffix}" for more in ("", *(f"-{n}" for n in range(len(taken) + 1))))
    return next(name for name in names if name not in taken)


def _keep_stopped(
    paths: VmPaths, gate: AsItsQemu, overlays: list[_Overlay], progress: Progress
) -> None:
    clear_beside(paths)
    try:
        for overlay in overlays:
            _rewrite(overlay, gate, progress, in_use=False)
    except BaseException:
        clear_beside(paths)
        raise


def _keep_running(
    paths: VmPaths,
    record: Record,
    machine: Machine,
    overlays: list[_Overlay],
    progress: Progress,
) -> None:
    written = {
        disk_id(disk, index)
        for index, disk in enumerate(machine.disks)
        if not is_read_only(disk) and not is_discarding(disk)
    }
    if any(one.name not in written for one in overlays):
        raise _not_while_it_runs(paths)
    ask: Connect = partial(connect, paths, record)
    with ask() as qmp:
        end_jobs(qmp)
        tops = top_nodes(qmp, [one.name for one in overlays])
    for overlay, (top, _) in zip(overlays, tops, strict=True):
        with streamed(ask, top, overlay.base, progress):
            failpoint("stream-copied")
        _verify(overlay)
        with ask() as qmp:
            drop_below(qmp, top, overlay.name)


def _not_while_it_runs(paths: VmPaths) -> WrongState:
    return WrongState(
        f"{paths.name} has images that cannot be replaced while it runs",
        hint=f"wirt stop {paths.name}, then wirt keep {paths.name}",
    )


def _verify(overlay: _Overlay) -> None:
    """See on disk that the image stands on what it shall. Raises QemuError."""
    sync_data(overlay.path)  # a disk with cache = "unsafe" is not flushed by QEMU
    with open_image(overlay.path, format="qcow2", with_backing=False, force_share=True) as image:
        name = image.info().backing_name
    if os.path.realpath(name) != os.path.realpath(overlay.base):
        raise QemuError(f"{overlay.path} still stands on {name or 'nothing'}")


def _rewrite(overlay: _Overlay, gate: AsItsQemu, progress: Progress, *, in_use: bool) -> None:
    """Put a new file under the name of an overlay. Raises ImageError, HostError."""
    directory, name = os.path.split(overlay.path)
    fresh = os.path.join(directory, f".next-{name}")
    with open_disk(overlay.path, "qcow2", gate, running=in_use) as image:
        collapse(image, fresh, overlay.depth, gate=gate, progress=progress)
    failpoint("keep-written")
    _take_name(fresh, overlay.path)
    failpoint("keep-renamed")


def _copy(source: str, fresh: str, target: str) -> None:
    try:
        shutil.copyfile(source, fresh)
        sync_data(fresh)
        os.rename(fresh, target)
        sync_directory(os.path.dirname(target))
    except OSError as error:
        raise host_error(error, target) from error


def _take_name(fresh: str, path: str) -> None:
    """Rename with owner and mode of the old file."""
    try:
        info = os.stat(path)
        os.chmod(fresh, info.st_mode & 0o777)
        if os.geteuid() == 0:
            os.chown(fresh, info.st_uid, info.st_gid)
        os.rename(fresh, path)
        sync_directory(os.path.dirname(path))
    except OSError as error:
        raise host_error(error, path) from error


def _keep_state(
    context: Context, name: str, known: State, *, alone: bool, progress: Progress
) -> Kept:
    manifest = known.manifest
    if _shared(context.home, manifest.machine):
        raise WrongState(
            f"{name} reads a disk image that another state has",
            hint="make a machine of it, stop that, and keep the machine: wirt restore --to",
        )
    overlays = list(_of_state(context.home, known, alone=alone))
    _require_space(known.paths.root, sum(one.space for one in overlays))
    gate = _gate_of(context.home, known)
    for overlay in overlays:
        try:
            _rewrite(overlay, gate, progress, in_use=True)
        except BaseException:
            _clear(known)
            raise
    if manifest.parent:
        replace_manifest(known, msgspec.structs.replace(manifest, parent=""))
        failpoint("keep-recorded")
    return _done(name, overlays, [])


def _gate_of(home: Home, known: State) -> AsItsQemu:
    """What is below a state's images is judged as for the QEMU that wrote them."""
    for disk in known.manifest.disks:
        info = status_of(os.path.join(known.paths.root, disk.file))
        if not disk.shared and os.geteuid() == 0:
            return AsItsQemu(home, info.st_uid, info.st_gid)
    return AsItsQemu(home, 0)


def _of_state(home: Home, known: State, *, alone: bool) -> Iterator[_Overlay]:
    gate = _gate_of(home, known)
    for disk in known.manifest.disks:
        path = os.path.join(known.paths.root, disk.file)
        if disk.format != "qcow2":
            continue
        with open_disk(path, "qcow2", gate, running=True) as image:
            overlay = _overlay(home, disk.file, path, image, alone=alone)
        if overlay is not None:
            yield overlay


def _clear(known: State) -> None:
    for file in os.listdir(known.paths.root):
        if file.startswith(".next-"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(known.paths.root, file))
