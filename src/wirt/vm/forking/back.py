"""A machine that goes back to a state: another machine in all but name, identity and place.

1. a directory without a name is filled, and a QEMU loads the state in it, while the machine
goes on; 2. its record says that it takes over from the old QEMU, as in a handover that is
decided; 3. the directories change places in one step; 4. the old QEMU ends and the guest runs.
Killed before 3, the old machine is the machine; after it, the next command does the rest.
"""

from __future__ import annotations

import os
import shutil
import stat

import msgspec

from wirt.host.failpoint import failpoint
from wirt.host.process import detach
from wirt.host.process_id import ProcessId
from wirt.spec.machine import Machine
from wirt.store.atomic import host_error, sync_directory, write_file
from wirt.store.layout import VmPaths
from wirt.store.machines import Making
from wirt.store.record import Handover, Record, write_record
from wirt.store.snapshots import snapshot_names
from wirt.vm.context import Context
from wirt.vm.description import summarise
from wirt.vm.forking.disks import make_overlay, sync_data
from wirt.vm.forking.freeze import later_forwards, without_forwards
from wirt.vm.forking.handover import finish
from wirt.vm.forking.identity import IDENTITY_SECONDS, await_answer, lay_before
from wirt.vm.forking.incoming import Ground
from wirt.vm.forking.outcome import Outcome
from wirt.vm.forking.spawn import Birth, Wish
from wirt.vm.keeping import LOG_LIMIT
from wirt.vm.tpm import copy_state

SAME = Wish(same_identity=True)


class Return(Birth):
    """A machine on its way back. ``old`` is what it replaces; ``run`` of that, if it is up."""

    def __init__(
        self,
        context: Context,
        ground: Ground,
        made: Making,
        *,
        old: VmPaths,
        record: Record,
        description: str,
    ) -> None:
        self._old = old
        self._was = record
        self._description = description
        super().__init__(context, ground, made, SAME)

    def _describe(self) -> tuple[Machine, tuple[str, ...]]:
        return msgspec.structs.replace(self.ground.manifest.machine, name=self._made.name), ()

    def _to_start(self, spec: Machine) -> Machine:
        return spec

    def _for_qemu(self) -> Machine:
        """The old QEMU holds the ports of the host until it has ended."""
        return without_forwards(self._machine)

    def _take_name(self) -> VmPaths:
        return self._made.paths

    def _fill(self, spec: Machine) -> None:
        paths = self._made.paths
        refill(self.ground, paths, self._old, self._description)
        summary = summarise(paths, spec)
        self._record = as_before(self._record, self._was, summary=summary, phase="running")
        failpoint("restore-filled")

    def replace(self) -> VmPaths:
        """Take the place of the old machine; return where that is now."""
        process = ProcessId.of(self._incoming.starting.process.pid)
        if process is None:
            raise self._incoming.refusal()
        later = later_forwards(self._machine)
        here, there = self._made.paths.root, self._old.root
        argv = tuple(word.replace(here, there) for word in self._incoming.argv)
        life = msgspec.structs.replace(
            self._life(process), argv=argv, forwards=(), later_forwards=later
        )
        handover = Handover(self.ground.state.id, (), life, decided=True)
        self._record = msgspec.structs.replace(self._record, run=self._was.run, handover=handover)
        write_record(self._made.paths.record, self._record)
        failpoint("restore-ready")
        old = self._made.replace()
        failpoint("exchanged")
        return old

    def take_over(self) -> Outcome:
        """End the old QEMU, and let the guest run."""
        paths, incoming = self._made.paths, self._incoming
        sync_directory(os.path.dirname(paths.root))
        detach(incoming.starting.process)
        self._port = lay_before(paths, self._machine, self._identity)
        try:
            self._record = finish(
                self.context, paths, self._record, qmp=incoming.qmp,
                devices={name: one.fileno() for name, one in incoming.consoles.items()},
                messages_fd=incoming.launched.messages_fd if incoming.launched else None,
            )  # fmt: skip
            return await_answer(
                self._port, paths, self._due, self._identity, timeout=IDENTITY_SECONDS
            )
        finally:
            incoming.release()
            self._close_port()


def as_before(record: Record, was: Record, **changes: object) -> Record:
    """Return the record of the machine that replaces another one: as old, and whose, that was."""
    return msgspec.structs.replace(
        record,
        created=was.created,
        temporary=was.temporary,
        owner_pid=was.owner_pid,
        owner_start_ticks=was.owner_start_ticks,
        **changes,
    )


def refill(ground: Ground, paths: VmPaths, old: VmPaths, description: str) -> None:
    """Fill a directory with a machine as it was, and with what outlives a restore.

    Those are its snapshots, its logs, and the keys by which ssh knows it.
    """
    try:
        _lay_images(ground, paths)
        _copy_logs(old, paths)
        os.mkdir(paths.snapshots, 0o700)
        for name in snapshot_names(old):
            _copy(old.snapshot(name), paths.snapshot(name))
        if os.path.exists(old.ssh_known_hosts):
            shutil.copyfile(old.ssh_known_hosts, paths.ssh_known_hosts)
        for directory in (paths.disks, paths.snapshots):
            sync_directory(directory)
    except OSError as error:
        raise host_error(error, paths.root) from error
    write_file(paths.spec, description.encode())


def _lay_images(ground: Ground, paths: VmPaths) -> None:
    manifest, state = ground.manifest, ground.state
    for disk in manifest.disks:
        target = os.path.join(paths.root, manifest.machine.disks[disk.index].image)
        if disk.shared:
            _copy(os.path.join(state.root, disk.file), target)
        else:
            make_overlay(target, disk, state)
    if os.path.exists(state.uefi_variables):
        _copy(state.uefi_variables, paths.uefi_variables)
    if os.path.isdir(state.tpm):
        copy_state(state.tpm, paths.tpm)


def _copy_logs(old: VmPaths, paths: VmPaths) -> None:
    """The directory is QEMU's, which a guest may have taken over: what is no file stays there."""
    for log, target in ((old.console_log, paths.console_log), (old.qemu_log, paths.qemu_log)):
        try:
            fd = os.open(log, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        with open(fd, "rb") as file:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                write_file(target, file.read(LOG_LIMIT), durable=False)


def _copy(source: str, target: str) -> None:
    shutil.copyfile(source, target)
    sync_data(target)
