"""Freezing a machine that stays in its QEMU: its memory is copied while it runs.

QEMU sends the memory as for a migration, again what the guest writes meanwhile, and stops the
guest for the last of it; then the disks get their overlays, the devices are saved, and the
guest goes on. The stream is split as it comes: pages go to a memory file that the forks share,
the rest is the device state.

It needs nothing of the machine but that QEMU can migrate it: forks are forked like this, and
machines that were started without forkable memory. A machine with a balloon cannot share (see
ADR 0005): its forks load the whole stream.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from typing import Any

import msgspec

from wirt.errors import QemuError, Timeout, WirtError
from wirt.host.failpoint import failpoint
from wirt.protocols.migration.split import PAGE_SIZE, Pages, Splitter, Zeroes
from wirt.protocols.qmp.client import QmpClient
from wirt.protocols.qmp.codec import Event
from wirt.protocols.qmp.messages import BlockNodeInfo, MigrationInfo
from wirt.qemu.block import disk_id, overlay_nodes
from wirt.qemu.machine import READ_ONLY_BASE
from wirt.store.atomic import host_error
from wirt.store.record import Handover, write_record
from wirt.store.states import Manifest, make_memory_directory
from wirt.units import MIB
from wirt.vm.forking.disks import freeze_variables, let_family_read
from wirt.vm.forking.forkable import loses_writes
from wirt.vm.forking.handover import clear_beside, go_on, take_names, undo
from wirt.vm.forking.incoming import IGNORE_SHARED
from wirt.vm.forking.source import Frozen, Source
from wirt.vm.memory import room

UNLIMITED = 1 << 40
"""Bytes a second; QEMU's own limit would make the guest wait."""

COPY_SECONDS = 600.0
_PATIENCE = 20.0
"""Seconds after which the guest is stopped although it still writes faster than we copy."""
_DOWNTIME_MS = 20
_PIPE = MIB
_SWITCHOVER = "pause-before-switchover"
_STOPPED = "pre-switchover"


class Copying:
    """One freeze by copying, step by step."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.record = source.record

    def run(self) -> Frozen:
        """Freeze; on any error the machine runs on and no trace stays."""
        source = self.source
        manifest = source.describe("stream")
        failpoint("disks-linked")
        machine = manifest.machine
        one_file = not (machine.balloon or machine.numa or machine.memory_path)
        shares = one_file and self._has_room()
        manifest = msgspec.structs.replace(manifest, in_devices=not shares)
        receiver = None
        try:
            self._journal(manifest)
            self._add_nodes(manifest)
            receiver = _Receiver(source, shares=shares)
            clock, pause = self._copy(manifest, receiver)
        except BaseException:
            self._undo()
            raise
        finally:
            if receiver is not None:
                receiver.close()
        self._settle()
        state = source.publish(manifest, clock=clock, pause=pause)
        return Frozen(state, pause, "stream", source.notes)

    def _has_room(self) -> bool:
        try:
            make_memory_directory(self.source.context.home)
            return room(self.source.context.home) >= self.source.machine.memory
        except OSError:
            return False

    def _journal(self, manifest: Manifest) -> None:
        source = self.source
        images = source.make_overlays(manifest)
        self._tops = top_nodes(source.qmp, [disk_id(source.machine.disks[d.index], d.index)
                                             for d in manifest.disks if not d.shared])  # fmt: skip
        nodes = tuple(new for _, new in self._tops)
        handover = Handover(source.made.id, images, nodes=nodes)
        self.record = msgspec.structs.replace(self.record, handover=handover)
        write_record(source.paths.record, self.record)
        failpoint("journaled")
        take_names(source.paths, handover)

    def _add_nodes(self, manifest: Manifest) -> None:
        source = self.source
        written = [disk for disk in manifest.disks if not disk.shared]
        for disk, (_, new) in zip(written, self._tops, strict=True):
            described = source.machine.disks[disk.index]
            file, image = overlay_nodes(described, new, source.image_of(disk.index))
            overlay: dict[str, Any] = {**image, "node-name": new, "backing": None}
            source.qmp.execute("blockdev-add", file)
            source.qmp.execute("blockdev-add", overlay)
        failpoint("nodes-added")

    def _copy(self, manifest: Manifest, receiver: _Receiver) -> tuple[float, float]:
        source, qmp = self.source, self.source.qmp
        runs = not source.run.paused_on_request
        _prepare(qmp)
        source.instant.ready()
        with qmp.events("STOP") as stops:
            if self._stops_first():
                if runs:
                    qmp.execute("stop")
                source.instant.stands()
                source.instant.all_stand()
            receiver.begin()
            _await(qmp, _STOPPED, receiver)
            begin = _when(stops.get(1.0)) if runs else time.time()
        failpoint("stopped")
        self._snapshot()
        freeze_variables(source.paths, source.machine, source.made, self.record)
        qmp.execute("migrate-continue", {"state": _STOPPED})
        _await(qmp, "completed", receiver)
        failpoint("saved")
        go_on(qmp)
        source.instant.runs()
        if not runs:  # a moment later: from where QEMU has put it now, it cannot be saved again
            qmp.execute("stop")
        pause = time.time() - begin if runs else 0.0
        receiver.finish()
        return begin, pause

    def _stops_first(self) -> bool:
        """QEMU would choose the moment by itself, and not the same as for another machine."""
        source = self.source
        lossy = loses_writes(source.run.accelerator, source.capabilities)
        return lossy or source.instant.shared

    def _snapshot(self) -> None:
        """From here on the guest writes to the overlays: they are its images for good."""
        actions = [
            {"type": "blockdev-snapshot", "data": {"node": old, "overlay": new}}
            for old, new in self._tops
        ]
        if actions:
            self.source.qmp.execute("transaction", {"actions": actions})
        failpoint("snapshot")
        handover = self.record.handover
        if handover is not None:
            handover = msgspec.structs.replace(handover, decided=True)
        state = self.source.made.id
        self.record = msgspec.structs.replace(self.record, handover=handover, state=state)
        write_record(self.source.paths.record, self.record, durable=False)

    def _undo(self) -> None:
        """Before the snapshot nothing has happened; after it, only the state is given up."""
        if self.record.handover is None:
            clear_beside(self.source.paths)
        else:
            undo(self.source.context, self.source.paths, self.record, qmp=self.source.qmp)

    def _settle(self) -> None:
        forget(self.source.qmp)
        self.record = msgspec.structs.replace(self.record, handover=None)
        write_record(self.source.paths.record, self.record)
        failpoint("handed-over")


def _when(event: Event) -> float:
    """Return when QEMU sent the event, on the wall clock of this host."""
    return event.seconds + event.microseconds / 1e6


def top_nodes(qmp: QmpClient, stems: list[str]) -> list[tuple[str, str]]:
    """Return the node that each drive writes to now, and a free name for the next one."""
    nodes = qmp.execute("query-named-block-nodes", {"flat": True}, reply=list[BlockNodeInfo])
    tops = []
    for stem in stems:
        laid = (node.node_name.removeprefix(f"{stem}-f") for node in nodes)
        last = max((int(number) for number in laid if number.isdigit()), default=0)
        tops.append((f"{stem}-f{last}" if last else f"{stem}-format", f"{stem}-f{last + 1}"))
    return tops


def _prepare(qmp: QmpClient) -> None:
    wanted = [{"capability": name, "state": True} for name in ("events", _SWITCHOVER)]
    wanted.append({"capability": IGNORE_SHARED, "state": False})
    qmp.execute("migrate-set-capabilities", {"capabilities": wanted})
    parameters = {"max-bandwidth": UNLIMITED, "downtime-limit": _DOWNTIME_MS}
    qmp.execute("migrate-set-parameters", parameters)


def forget(qmp: QmpClient) -> None:
    """Take back what ``_prepare`` set, for migrations of others."""
    wanted = [{"capability": _SWITCHOVER, "state": False}]
    qmp.execute("migrate-set-capabilities", {"capabilities": wanted})


def _await(qmp: QmpClient, wanted: str, receiver: _Receiver) -> None:
    """Return when the migration says ``wanted``; stop a guest that never lets it."""
    patience, deadline = time.monotonic() + _PATIENCE, time.monotonic() + COPY_SECONDS
    while time.monotonic() < deadline:
        receiver.raise_failure()
        try:
            event = qmp.wait_event(["MIGRATION"], timeout=1.0)
        except Timeout:
            if time.monotonic() > patience:
                qmp.execute("stop")
                patience = deadline
            continue
        status = event.data_as(dict).get("status")
        if status == wanted:
            return
        if status in {"failed", "cancelled"}:
            receiver.raise_failure()
            info = qmp.execute("query-migrate", reply=MigrationInfo)
            raise QemuError(f"QEMU could not save the machine: {info.error_desc or status}")
    raise Timeout(f"the memory was not copied within {COPY_SECONDS:.0f} s")


class _Receiver:
    """Reads the stream in a thread: pages to the memory file, the rest to ``devices``."""

    def __init__(self, source: Source, *, shares: bool) -> None:
        self._source = source
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        made = source.made
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._memory = -1
        try:
            self._devices = os.open(made.devices, flags, 0o600)
            if shares:
                self._memory = os.open(made.memory, flags, 0o600)
                os.ftruncate(self._memory, source.machine.memory)
        except OSError as error:
            raise host_error(error, error.filename or made.root) from error
        self._written = bytearray(source.machine.memory // PAGE_SIZE)
        self._splitter = Splitter(source.machine.memory)

    def begin(self) -> None:
        """Start the migration and read it."""
        read_fd, write_fd = os.pipe()
        with contextlib.suppress(OSError):
            fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, _PIPE)
        self._thread = threading.Thread(target=self._read, args=(read_fd,), daemon=True)
        self._thread.start()
        try:
            self._source.qmp.send_fd("stream", write_fd)
        finally:
            os.close(write_fd)
        self._source.qmp.execute("migrate", {"uri": "fd:stream"})

    def _read(self, fd: int) -> None:
        try:
            with open(fd, "rb", buffering=0) as pipe:
                while data := pipe.read(_PIPE):
                    self._take(data)
            if self._memory >= 0:
                self._splitter.end()
        except (OSError, WirtError) as error:
            self._failure = error  # QEMU sees a broken pipe, and fails the migration

    def _take(self, data: bytes) -> None:
        if self._memory < 0:
            _write_all(self._devices, data)
            return
        for piece in self._splitter.feed(data):
            if isinstance(piece, Pages):
                _pwrite_all(self._memory, piece.data, piece.offset)
                first, count = piece.offset // PAGE_SIZE, len(piece.data) // PAGE_SIZE
                self._written[first : first + count] = b"\1" * count
            elif isinstance(piece, Zeroes):
                self._zero(piece)
            else:
                _write_all(self._devices, piece.data)

    def _zero(self, piece: Zeroes) -> None:
        """Holes are zero already, unless the guest had something there before."""
        first, end = piece.offset // PAGE_SIZE, (piece.offset + piece.length) // PAGE_SIZE
        while (at := self._written.find(1, first, end)) >= 0:
            _pwrite_all(self._memory, bytes(PAGE_SIZE), at * PAGE_SIZE)
            self._written[at] = 0
            first = at + 1

    def raise_failure(self) -> None:
        """Raise what went wrong on our side."""
        if isinstance(self._failure, OSError):
            raise host_error(self._failure, self._source.made.root) from self._failure
        if self._failure is not None:
            raise self._failure

    def finish(self) -> None:
        """Wait for the end of the stream, and see that all is there."""
        if self._thread is not None:
            self._thread.join(COPY_SECONDS)
        self.raise_failure()
        if self._memory >= 0:
            reads_only = self._source.capabilities.version >= READ_ONLY_BASE
            let_family_read(self._source.made.memory, self._source.record, write=not reads_only)

    def close(self) -> None:
        """Let go of the files; the thread has ended, or ends with QEMU's side of the pipe."""
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(5.0)
        os.close(self._devices)
        if self._memory >= 0:
            os.close(self._memory)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _pwrite_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done
