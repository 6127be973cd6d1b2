"""A running machine that is frozen, and the state in the making."""

from __future__ import annotations

import os
import time
from typing import Literal

import msgspec

from wirt.errors import WrongState
from wirt.host.cpu import host_cpu
from wirt.host.qemu_probe import probe
from wirt.protocols.qmp.client import QmpClient
from wirt.qapi.capabilities import Capabilities
from wirt.qemu.machine import cpu_model
from wirt.spec.machine import Machine
from wirt.store.layout import StatePaths, VmPaths
from wirt.store.record import Record, Run
from wirt.store.states import FrozenDisk, Manifest, State, hold, process_label, publish
from wirt.vm.context import Context
from wirt.vm.forking.disks import freeze_disks, let_family_read, make_overlay, sync_data
from wirt.vm.forking.guest import look_at_guest
from wirt.vm.forking.handover import beside
from wirt.vm.forking.incoming import qemu_facts
from wirt.vm.forking.instant import Instant
from wirt.vm.preflight import image_path
from wirt.vm.start import DEFAULT_BINARY


class Frozen(msgspec.Struct, frozen=True):
    """A state, and what making it cost the machine: ``pause`` in seconds."""

    state: State
    pause: float
    method: str
    notes: tuple[str, ...] = ()


class Source(msgspec.Struct, frozen=True):
    """A running machine that is frozen, and the state in the making."""

    context: Context
    paths: VmPaths
    machine: Machine
    record: Record
    qmp: QmpClient
    made: StatePaths
    notes: tuple[str, ...]
    label: str
    """What holds the state; "": this process, while it lives."""
    instant: Instant

    @property
    def run(self) -> Run:
        """The life that is frozen. Raises WrongState."""
        if self.record.run is None:
            raise WrongState(f"{self.paths.name} is not running")
        return self.record.run

    @property
    def capabilities(self) -> Capabilities:
        return probe(self.machine.qemu.binary or DEFAULT_BINARY, self.context.home.cache)

    def image_of(self, index: int) -> str:
        """Return the path of the image of ``disks[index]``."""
        return image_path(self.paths, self.machine.disks[index])

    def describe(self, method: Literal["freeze", "stream"]) -> Manifest:
        """Return the manifest as far as it is known before the pause."""
        run = self.run
        return Manifest(
            created=time.time(),
            source=self.paths.name,
            parent=self.record.state,
            machine=self._without_balloon(),
            accelerator=run.accelerator,
            cpu=cpu_model(self.machine, run.accelerator),
            host_cpu=host_cpu().model if run.accelerator == "kvm" else "",
            qemu=qemu_facts(self.context, self.capabilities),
            argv=run.argv,
            memory=self.machine.memory,
            disks=freeze_disks(self.paths, self.machine, self.made, self.record),
            guest=look_at_guest(self.paths, self.qmp),
            clock=0.0,
            method=method,
            image=self.record.image,
            image_id=self.record.image_id,
            guest_user=self.record.guest_user,
        )

    def _without_balloon(self) -> Machine:
        """A machine whose memory is a file was started without one."""
        balloon = self.machine.balloon and self.run.memory == "anonymous"
        return msgspec.structs.replace(self.machine, balloon=balloon)

    def make_overlays(self, manifest: Manifest) -> tuple[tuple[str, str], ...]:
        """Make an overlay beside each image that was frozen; return names and frozen files."""
        return overlays_beside(self.paths, self.machine, self.made, self.record, manifest.disks)

    def publish(self, manifest: Manifest, *, clock: float, pause: float) -> State:
        """Make the state one; its machine stands on it already."""
        sync_data(self.made.devices)
        let_family_read(self.made.devices, self.record)
        manifest = msgspec.structs.replace(manifest, clock=clock, pause=pause)
        hold(State(self.made, manifest), self.label or process_label())
        return publish(self.made, manifest)


def overlays_beside(
    paths: VmPaths,
    machine: Machine,
    made: StatePaths,
    record: Record,
    disks: tuple[FrozenDisk, ...],
) -> tuple[tuple[str, str], ...]:
    """Make an overlay beside each image that was frozen; return names and frozen files."""
    images = []
    for disk in disks:
        if disk.shared:
            continue
        name = os.path.basename(machine.disks[disk.index].image)
        target = beside(paths, name)
        make_overlay(target, disk, made)
        if record.uid:
            os.chown(target, record.uid, record.uid)
        images.append((name, os.path.join(made.root, disk.file)))
    return tuple(images)
