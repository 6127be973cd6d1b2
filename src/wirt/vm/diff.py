"""What differs between two members of the family: machines, snapshots, templates.

Disks are compared through their chains down to the first image that both stand on, and where an
ext4 file system is found, its files. Memory is not compared.

A machine that runs is only looked at. Its QEMU is told to write out what it holds back; if the
guest has written to a disk until all was read, it is read again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal

import msgspec

from wirt.errors import Busy, ImageError, NotFound, UsageError
from wirt.image.base import Image
from wirt.image.differences import Range, differences
from wirt.image.ext4.differences import FileChange, file_differences
from wirt.image.part import Part
from wirt.image.partitions import partitions
from wirt.image.progress import Progress, silent
from wirt.protocols.qmp.client import QmpClient
from wirt.qemu.block import disk_id
from wirt.spec.machine import Machine
from wirt.store.machines import find, locked, machine_names
from wirt.store.record import Record, read_record
from wirt.store.snapshots import read_snapshot
from wirt.store.states import State, using
from wirt.store.templates import read_template
from wirt.vm import state
from wirt.vm.block_jobs import flush_all
from wirt.vm.chain import AsItsQemu, open_disk, status_of
from wirt.vm.context import Context
from wirt.vm.description import load_spec, load_started
from wirt.vm.forking.handover import recover
from wirt.vm.monitor import connect
from wirt.vm.preflight import image_path

ATTEMPTS = 5
"""How often a disk is read that a guest writes to meanwhile."""
MOST_RANGES = 65536
"""Ranges that are listed; all are counted."""

_SIGNS = (
    (0, b"XFSB", "XFS"), (0x10040, b"_BHRfS_M", "btrfs"), (0, b"LUKS\xba\xbe", "LUKS"),
    (536, b"LVM2 001", "LVM"), (24, b"LVM2 001", "LVM"), (3, b"NTFS    ", "NTFS"),
    (82, b"FAT32   ", "FAT"), (54, b"FAT1", "FAT"), (4086, b"SWAPSPACE2", "swap space"),
)  # fmt: skip
_SIGN_BYTES = 0x10048


class FileSystem(msgspec.Struct, frozen=True):
    """A file system that differs. ``partition`` 0: it is the whole disk."""

    partition: int
    kind: str
    """``ext4`` also for ext2 and ext3; other names for what is not read; "" for unknown."""
    files: tuple[FileChange, ...] = ()
    note: str = ""
    """Why the files are not known."""


class DiskDifference(msgspec.Struct, frozen=True):
    """What differs in one disk. Sizes and offsets in bytes; ``ranges``: offset and length."""

    disk: str
    sizes: tuple[int, int]
    bytes: int
    ranges: tuple[tuple[int, int], ...] = ()
    ranges_left_out: int = 0
    only_in: Literal["", "first", "second"] = ""
    file_systems: tuple[FileSystem, ...] = ()


class Difference(msgspec.Struct, frozen=True):
    """What differs; disks that are equal are not listed."""

    first: str
    second: str
    identical: bool
    disks: tuple[DiskDifference, ...] = ()


class _Side(msgspec.Struct):
    """One of the two: disks as index → (path, format), and how its QEMU is asked, if it runs."""

    name: str
    machine: Machine
    gate: AsItsQemu
    images: dict[int, tuple[str, str]] = msgspec.field(default_factory=dict)
    connect: Callable[[], QmpClient] | None = None

    def open(self, index: int) -> Image:
        path, image_format = self.images[index]
        return open_disk(path, image_format, self.gate, running=self.connect is not None)

    def settle(self) -> None:
        """Let QEMU write to the images what it keeps of them."""
        if self.connect is None:
            return
        with self.connect() as qmp:  # only for a moment: others want to ask it too
            flush_all(qmp)

    def stamp(self) -> list[object]:
        """Return something that differs when anything was written to the images."""
        if self.connect is None:
            return []
        with self.connect() as qmp:
            stats = qmp.execute("query-blockstats", reply=list[dict[str, Any]])
        done = [one["stats"]["wr_operations"] + one["stats"]["unmap_operations"] for one in stats]
        files = [status_of(path) for path, _ in self.images.values()]
        return [done, [(info.st_mtime_ns, info.st_size, info.st_blocks) for info in files]]


def diff(
    context: Context, first: str, second: str, *, files: bool = True, progress: Progress = silent
) -> Difference:
    """Compare the disks of two machines, snapshots (``VM:NAME``) or templates.

    ``files`` False: no file system is read. Raises NotFound, UsageError, ImageError, and Busy
    for a machine whose guest never stops writing.
    """
    if first == second:
        raise UsageError("a thing does not differ from itself", hint="see them all: wirt tree")
    with ExitStack() as stack:
        held: dict[str, Record] = {}
        for name in sorted({one for one in (first, second) if _is_machine(context, one)}):
            paths = stack.enter_context(locked(context.home, name, waiting=context.say))
            held[name] = recover(context, paths)
        sides = [_side(context, stack, name, held.get(name)) for name in (first, second)]
        for _ in range(ATTEMPTS):
            found = _unless_written(sides, files=files, progress=progress)
            if found is not None:
                return found
            context.say("a guest wrote to its disk meanwhile: it is read again")
    live = next(side.name for side in sides if side.connect is not None)
    raise Busy(
        f"{live} writes to its disk all the time",
        hint=f"wirt pause {live} meanwhile, or compare a snapshot: wirt snapshot {live} now",
    )


def _is_machine(context: Context, name: str) -> bool:
    return name in machine_names(context.home)


def _side(context: Context, stack: ExitStack, name: str, record: Record | None) -> _Side:
    if record is not None:
        return _machine(context, name, record)
    machine, colon, snapshot = name.partition(":")
    if colon:
        ident = read_snapshot(find(context.home, machine), snapshot).state
    else:
        try:
            ident = read_template(context.home, name).state
        except NotFound:
            find(context.home, name)  # raises, with names that are near
            raise
    return _frozen(context, name, stack.enter_context(using(context.home, ident)))


def _machine(context: Context, name: str, record: Record) -> _Side:
    paths = find(context.home, name)
    up = state.look(paths, ask=False).is_up
    machine = load_started(paths) if up else load_spec(paths)
    side = _Side(name, machine, AsItsQemu(context.home, record.uid, record.group))
    for index, disk in enumerate(machine.disks):
        if disk.image:
            side.images[index] = image_path(paths, disk), disk.format
    if up:
        side.connect = partial(connect, paths, read_record(paths.record))
    return side


def _frozen(context: Context, name: str, known: State) -> _Side:
    manifest = known.manifest
    images = {
        index: (disk.image, disk.format)
        for index, disk in enumerate(manifest.machine.disks)
        if disk.image
    }
    owners = [(0, 0)]
    for disk in manifest.disks:
        path = os.path.join(known.paths.root, disk.file)
        images[disk.index] = path, disk.format
        info = status_of(path)
        owners.append((info.st_uid, info.st_gid))
    uid, group = owners[-1] if os.geteuid() == 0 else (0, 0)
    return _Side(name, manifest.machine, AsItsQemu(context.home, uid, group), images)


def _unless_written(sides: list[_Side], *, files: bool, progress: Progress) -> Difference | None:
    """Return what differs; None if a guest wrote to its disk until it was known."""
    for side in sides:
        side.settle()
    before = [side.stamp() for side in sides]
    try:
        found = _compare(*sides, files=files, progress=progress)
    except ImageError:
        if before == [side.stamp() for side in sides]:
            raise
        return None
    return found if before == [side.stamp() for side in sides] else None


def _compare(first: _Side, second: _Side, *, files: bool, progress: Progress) -> Difference:
    disks = []
    for index in sorted(first.images.keys() | second.images.keys()):
        found = _disk(first, second, index, files=files, progress=progress)
        if found is not None:
            disks.append(found)
    return Difference(first.name, second.name, not disks, tuple(disks))


def _disk(
    first: _Side, second: _Side, index: int, *, files: bool, progress: Progress
) -> DiskDifference | None:
    ways: tuple[tuple[_Side, _Side, Literal["first", "second"]], ...] = (
        (first, second, "first"),
        (second, first, "second"),
    )
    for side, other, where in ways:
        if index not in other.images:
            name = disk_id(side.machine.disks[index], index)
            with side.open(index) as image:
                size = image.virtual_size
            sizes = (size, 0) if where == "first" else (0, size)
            return DiskDifference(name, sizes, size, only_in=where)
    name = disk_id(first.machine.disks[index], index)
    with _both(first, second, index) as (one, other_disk):
        if one is other_disk:
            return None
        return compare_disks(name, one, other_disk, files=files, progress=progress)


@contextlib.contextmanager
def _both(first: _Side, second: _Side, index: int) -> Iterator[tuple[Image, Image]]:
    with first.open(index) as one:
        if os.path.realpath(first.images[index][0]) == os.path.realpath(second.images[index][0]):
            yield one, one
            return
        with second.open(index) as other:
            yield one, other


def compare_disks(
    name: str, first: Image, second: Image, *, files: bool = True, progress: Progress = silent
) -> DiskDifference | None:
    """Return what differs in one disk; None if nothing does. Raises ImageError."""
    ranges = list(differences(first, second, progress=progress))
    sizes = first.virtual_size, second.virtual_size
    if not ranges and sizes[0] == sizes[1]:
        return None
    return DiskDifference(
        name,
        sizes,
        sum(end - start for start, end in ranges),
        tuple((start, end - start) for start, end in ranges[:MOST_RANGES]),
        max(0, len(ranges) - MOST_RANGES),
        file_systems=tuple(_file_systems(first, second, ranges)) if files else (),
    )


def _file_systems(first: Image, second: Image, ranges: list[Range]) -> Iterator[FileSystem]:
    mine, theirs = partitions(first), partitions(second)
    if mine != theirs:
        yield FileSystem(0, "", note="the partitions are not the same")
    elif not mine:
        yield _file_system(0, first, second, ranges)
    for number, start, end in mine if mine == theirs else ():
        inside = [(max(a, start) - start, min(b, end) - start) for a, b in ranges
                  if b > start and a < end]  # fmt: skip
        if inside:
            parts = Part(first, start, end), Part(second, start, end)
            yield _file_system(number, *parts, inside)


def _file_system(number: int, first: Image, second: Image, ranges: list[Range]) -> FileSystem:
    try:
        changes = sorted(file_differences(first, second, ranges), key=lambda one: one.path)
    except ImageError as error:
        kind = _kind(first) or _kind(second)
        what = f"{kind} is not read" if kind else error.message
        return FileSystem(number, kind or "", note=what)
    return FileSystem(number, "ext4", tuple(changes))


def _kind(image: Image) -> str:
    head = image.pread(0, min(_SIGN_BYTES, image.virtual_size))
    return next((name for at, sign, name in _SIGNS if head[at:].startswith(sign)), "")
