"""What wirt remembers of a machine beside its description: ``state.json``, versioned.

Nothing here decides whether the machine runs (the run lock does); the record says what was
started, by which facts, and why it ended.
"""

from __future__ import annotations

import os
from typing import Literal

import msgspec

from wirt.errors import HostError
from wirt.spec.nic import Nic
from wirt.store.atomic import host_error, write_file

VERSION = 1
_MAX_BYTES = 4 << 20

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


_decoder = msgspec.json.Decoder(Record)


def read_record(path: str) -> Record:
    """Return the record. A missing one is empty; a foreign one raises HostError."""
    try:
        data = _read(path)
    except FileNotFoundError:
        return Record()
    except OSError as error:
        raise host_error(error, path) from error
    try:
        record = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise HostError(
            f"{path} is damaged: {error}",
            hint=f"move it away and start the machine again: mv {os.path.basename(path)} …",
        ) from error
    if record.version > VERSION:
        raise HostError(
            f"{path} is of a newer wirt (version {record.version})", hint="upgrade wirt"
        )
    return record


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return os.read(fd, min(os.fstat(fd).st_size, _MAX_BYTES))
    finally:
        os.close(fd)


def write_record(path: str, record: Record) -> None:
    """Replace the record atomically."""
    write_file(path, msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
