"""A storage that records what it is told, and the disks a power cut could leave behind.

Sectors of 512 bytes are written whole or not at all. Between two flushes every sector may
keep its old bytes or hold those of any write so far: that covers lost, reordered and torn
writes. What was flushed stays.
"""

import random
from dataclasses import dataclass, field

import numpy as np

from tests.image.qcow2.support import Memory

SECTOR = 512


@dataclass
class Event:
    kind: str  # write, flush, model, durable
    offset: int = 0
    data: bytes = b""
    model: object = None


@dataclass
class Log:
    start: bytes
    events: list[Event] = field(default_factory=list)


class Recorder(Memory):
    """Memory that logs. ``model`` notes what the guest has been told so far."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.log = Log(bytes(data))

    def pwrite(self, offset, data):
        super().pwrite(offset, data)
        self.log.events.append(Event("write", offset, bytes(data)))

    def punch_hole(self, offset, length):
        inside = min(offset + length, len(self.data)) - offset
        if inside > 0:
            super().punch_hole(offset, inside)
            self.log.events.append(Event("write", offset, bytes(inside)))
        return True

    def truncate(self, size):
        super().truncate(size)
        self.log.events.append(Event("size", size))

    def flush(self):
        self.log.events.append(Event("flush"))

    def may_be(self, model):
        """A change to ``model`` began: from now on a cut may show it, or a part."""
        self.log.events.append(Event("model", model=model))

    def must_be(self, model):
        """The change was flushed: from now on a cut must show it."""
        self.log.events.append(Event("durable", model=model))


@dataclass
class Cut:
    disk: bytes
    durable: object
    """The model at the last flush that returned."""
    possible: list[object]
    """The models of the changes begun since."""


def cut(log: Log, rng: random.Random) -> Cut:
    """Return what a disk may hold if the power fails at a random event."""
    stop = rng.randrange(1, len(log.events) + 1)
    disk = Memory(log.start)
    pending: list[Event] = []
    durable, possible = None, []
    for event in log.events[:stop]:
        if event.kind in {"write", "size"}:
            pending.append(event)
        elif event.kind == "flush":
            _apply_all(disk, pending)
            pending = []
        elif event.kind == "model":
            possible.append(event.model)
        else:
            durable, possible = event.model, []
    _apply_some(disk, pending, rng)
    return Cut(bytes(disk.data), durable, possible)


def _apply_all(disk: Memory, events: list[Event]) -> None:
    for event in events:
        if event.kind == "size":
            disk.truncate(event.offset)
        else:
            disk.pwrite(event.offset, event.data)


def _apply_some(disk: Memory, events: list[Event], rng: random.Random) -> None:
    """For each sector choose how many of its writes were carried out."""
    keep = rng.choice((0.1, 0.5, 0.9))
    lost: set[int] = set()
    for event in events:
        if event.kind == "size":
            disk.truncate(event.offset)
            continue
        position = event.offset
        while position < event.offset + len(event.data):
            end = min((position // SECTOR + 1) * SECTOR, event.offset + len(event.data))
            sector = position // SECTOR
            # Once a sector misses a write it stays behind: a disk keeps order within one.
            if sector not in lost and rng.random() < keep:
                piece = event.data[position - event.offset : end - event.offset]
                disk.pwrite(position, piece)
            else:
                lost.add(sector)
            position = end


def lost_bytes(data: bytes, models: list[bytes]):
    """Yield what of ``data``, a disk after a cut, is in none of the models it may be.

    A cut in a change of size shows one of both; what only the longer one has may be zeros.
    """
    sizes = {len(model) for model in models}
    if len(data) not in sizes:
        yield f"the size is {len(data)}, not of {sizes}"
        return
    found = np.frombuffer(data, dtype=np.uint8)
    right = np.zeros(len(found), dtype=bool)
    for model in models:
        disk = np.frombuffer(model, dtype=np.uint8)
        common = min(len(disk), len(found))
        right[:common] |= disk[:common] == found[:common]
        right[common:] |= found[common:] == 0
    if not right.all():
        yield f"{int((~right).sum())} bytes are lost, the first at {int(np.argmin(right)):#x}"
