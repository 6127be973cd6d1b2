"""What wirt remembers of a machine beside its description: ``state.json``, versioned.

Nothing here decides whether the machine runs (the run lock does); the record says what was
started, by which facts, and why it ended.
"""

import os
from typing import Literal

import msgspec

from wirt.host.process_id import ProcessId
from wirt.spec.nic import Nic
from wirt.store.record_file import VERSION, read_file, replace_file

Phase = Literal["stopped", "starting", "running"]


class Summary(msgspec.Struct, frozen=True):
    """What ``wirt ls`` shows, taken from machine.toml as it was at ``mtime_ns`` and ``size``."""

    memory: int
    vcpus: int
    uuid: str
    autostart: bool = False
    mtime_ns: int = 0
    size: int = 0


class Wire(msgspec.Struct, frozen=True):
    """A network card as it is plugged now, which the description may not say any more."""

    index: int
    """Its number in the names of devices and hubs."""
    nic: Nic
    interface: str = ""
    """The TAP behind it."""
    place: str = ""
    """Bus or slot of a card that was plugged while the machine ran."""
    hub: int | None = None
    """Between card and backend; None: they are joined, and stay so."""


class ServedImage(msgspec.Struct, frozen=True):
    """An image that QEMU does not open by itself: wirt serves it over NBD."""

    disk: int
    """Index of the disk in the description."""
    path: str
    format: str
    why: str
    read_only: bool
    below: bool = False
    """It is what the disk's overlay names, not the disk's own image."""


class Run(msgspec.Struct, frozen=True):
    """One life of the QEMU process."""

    pid: int
    start_ticks: int
    boot_id: str
    started: float
    accelerator: str
    accelerator_reason: str
    argv: tuple[str, ...]
    paused_on_request: bool = False
    forwards: tuple[tuple[str, int, int], ...] = ()
    """Protocol, host port, guest port, as they are open now."""
    wires: tuple[Wire, ...] = ()
    memory: Literal["anonymous", "file", "fork"] = "anonymous"
    """``file``: in a file of its own, which can be frozen; ``fork``: private over a state's."""
    later_forwards: tuple[tuple[str, str, tuple[str, int, int]], ...] = ()
    """Forwards that can be opened only when another QEMU lets go of the host's ports:
    netdev, the forward as QEMU writes it, and as ``forwards`` has it."""
    served: tuple[ServedImage, ...] = ()
    server_pid: int = 0
    """The process that serves them, with its start time."""
    server_start_ticks: int = 0
    tpm_pid: int = 0
    """The swtpm beside QEMU, with its start time."""
    tpm_start_ticks: int = 0

    @property
    def process(self) -> ProcessId:
        return ProcessId(self.pid, self.start_ticks)

    @property
    def tpm(self) -> ProcessId | None:
        return ProcessId(self.tpm_pid, self.tpm_start_ticks) if self.tpm_pid else None


class Handover(msgspec.Struct, frozen=True):
    """A machine on its way from the recorded QEMU to a second one, while it is frozen.

    Undecided, the first is the machine; decided, the second is. ``images`` are the names in
    ``disks/`` that an overlay has taken, and the frozen files they had. Without ``next`` it
    stays in its QEMU, and is decided when that writes to the overlays (``nodes``).
    """

    state: str
    images: tuple[tuple[str, str], ...]
    next: Run | None = None
    nodes: tuple[str, ...] = ()
    decided: bool = False


class IdentityDue(msgspec.Struct, frozen=True):
    """What a fork that has not run yet must become when it does, and by whom it can be told."""

    same: bool
    macs: tuple[tuple[str, str], ...] = ()
    helper: bool = False
    agent: bool = False


class Record(msgspec.Struct, frozen=True):
    """The state of a machine. ``uid`` is 0 where QEMU runs as the user itself."""

    version: int = VERSION
    created: float = 0.0
    phase: Phase = "stopped"
    image: str = ""
    image_id: str = ""
    guest_user: str = ""
    uid: int = 0
    run: Run | None = None
    ended: str = ""
    """Why the last run ended, in words."""
    summary: Summary | None = None
    temporary: bool = False
    """Made by ``wirt run IMAGE -- COMMAND``: removed when its command has ended."""
    owner_pid: int = 0
    """The wirt process a temporary machine belongs to, with its start time."""
    owner_start_ticks: int = 0
    state: str = ""
    """The state (``wirt.store.states``) that the images stand on, all the machine's life."""
    group: int = 0
    """The gid that may read the files of the family's states; 0 when not root."""
    handover: Handover | None = None
    unborn: bool = False
    """A fork that has loaded its memory and never ran: undone if its maker was killed."""
    identity_due: IdentityDue | None = None
    """Set for a fork that was made paused, until it runs."""
    pool: str = ""
    """The pool in which it waits (``wirt.store.pools``), until it runs."""


def read_record(path: str) -> Record:
    """Return the record. A missing one is empty; a foreign one raises HostError."""
    cure = f"move it away and start the machine again: mv {os.path.basename(path)} …"
    record = read_file(path, Record, cure=cure)
    return Record() if record is None else record


def write_record(path: str, record: Record, *, durable: bool = True) -> None:
    """Replace the record atomically; not ``durable``: safe from kills, not yet from power cuts."""
    replace_file(path, record, durable=durable)
