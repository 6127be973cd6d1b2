"""Power cuts in rebase, flatten and commit: the guest loses nothing in either file."""

import random

import pytest

from tests.image.operations.support import patterned
from tests.image.powercut import Event, Recorder, cut
from tests.image.qcow2.support import Memory
from wirt.image.base import OpenOptions
from wirt.image.commit import write_down
from wirt.image.formats.qcow2 import FORMAT
from wirt.image.formats.qcow2.header import Header
from wirt.image.formats.qcow2.image import Qcow2Image
from wirt.image.formats.qcow2.volume import Volume
from wirt.image.rebase import keep_what_differs

SIZE = 200_000 // 512 * 512
CUTS = 300
FEATURES = {
    "v2": {"compat": "0.10", "cluster_size": "512"},
    "v3": {"cluster_size": "1024"},
    "extended": {"extended_l2": "on", "cluster_size": "16384"},
}


class Hasty(Volume):
    """Never waits for the disk: the order that the cuts must catch."""

    def barrier(self):
        """Broken on purpose."""


class Twin(Recorder):
    """One of two files in one machine: every event has a place in both logs."""

    partner = None

    def note(self, event):
        self.log.events.append(event)
        self.partner.log.events.append(Event("elsewhere"))

    def pwrite(self, offset, data):
        Memory.pwrite(self, offset, data)
        self.note(Event("write", offset, bytes(data)))

    def punch_hole(self, offset, length):
        inside = min(offset + length, len(self.data)) - offset
        if inside > 0:
            Memory.punch_hole(self, offset, inside)
            self.note(Event("write", offset, bytes(inside)))
        return True

    def truncate(self, size):
        Memory.truncate(self, size)
        self.note(Event("size", size))

    def flush(self):
        self.note(Event("flush"))


def made(features, data, **options):
    """Return the bytes of an image that holds ``data`` (offset → bytes)."""
    storage = Memory()
    FORMAT.create(storage, SIZE, features | options)
    with FORMAT.open(storage, OpenOptions(writable=True, with_backing=False)) as image:
        for offset, part in data.items():
            image.pwrite(offset, part)
    return bytes(storage.data)


class Machine:
    """An overlay on a base, and another base, with what the guest sees."""

    def __init__(self, seed, features, volume=Volume):
        dice = random.Random(seed)
        self.rng = dice
        self.volume = volume
        self.old = bytes(patterned(dice.random(), SIZE, 4096))
        self.new = bytearray(self.old)
        for _ in range(6):
            at = dice.randrange(SIZE - 9000)
            self.new[at : at + 9000] = patterned(dice.random(), 9000, 512)
        base = Twin(made(features, {0: self.old}))
        writes = {}
        for _ in range(8):
            at = dice.randrange(SIZE - 8000)
            writes[at] = dice.randbytes(dice.randrange(1, 8000))
        top = Twin(made(features, {}, backing_file="old"))
        base.partner, top.partner = top, base
        self.files = {"top": top, "base": base}
        self.image = self.opened(top, writable=True)
        self.base = self.opened(base, writable=True)
        self.image.backing = self.base
        for at, data in writes.items():
            self.image.pwrite(at, data)
        self.image.flush()
        self.disk = self.image.pread(0, SIZE)
        for file in self.files.values():
            file.log.start = bytes(file.data)
            file.log.events.clear()

    def opened(self, storage, *, writable=False):
        options = OpenOptions(writable=writable, with_backing=False)
        return Qcow2Image(self.volume(storage, Header.parse(storage), options), options)

    def lower(self, name, disks):
        if name is None:
            return None
        storage = disks["base"] if name == "old" else Memory(made({}, {0: self.new}))
        return FORMAT.open(storage, OpenOptions(with_backing=False))

    def problems(self, number):
        """Cut both files at one moment; return what the guest has lost."""
        disks = {
            name: Memory(cut(file.log, random.Random(f"{number}")).disk)
            for name, file in self.files.items()
        }
        top = FORMAT.open(disks["top"], OpenOptions(with_backing=False))
        top.backing = self.lower(top.backing_name, disks)
        found = [f"top: {m}" for m in top.check().messages] if top.check().corruptions else []
        base = FORMAT.open(disks["base"], OpenOptions())
        if base.check().corruptions:
            found.append(f"base: {base.check().messages[:2]}")
        if top.pread(0, SIZE) != self.disk:
            found.append("the guest's bytes differ")
        return found


def rebased(machine):
    new = machine.lower("new", {})
    keep_what_differs(machine.image, new)
    machine.image.set_backing("new", "qcow2")
    machine.image.flush()


def flattened(machine):
    keep_what_differs(machine.image, None)
    machine.image.set_backing(None, None)
    machine.image.flush()


def committed(machine):
    write_down(machine.image, machine.base)
    machine.image.make_empty()
    machine.image.flush()


def careless(machine):
    """Empty the overlay before the base is durable."""
    machine.base.flush = lambda: None
    committed(machine)


def early(machine):
    """Switch the link first."""
    machine.image.set_backing(None, None)
    keep_what_differs(machine.image, None)
    machine.image.flush()


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
@pytest.mark.parametrize("operation", [rebased, flattened, committed])
def test_no_cut_takes_a_byte_from_the_guest(operation, features):
    for seed in range(2):
        machine = Machine(f"{seed} {features}", features)
        operation(machine)
        assert machine.image.pread(0, SIZE) == machine.disk
        for number in range(CUTS // 6):
            assert machine.problems(number) == [], (seed, number)


@pytest.mark.parametrize("operation", [careless, early])
def test_a_broken_order_is_caught(operation):
    machine = Machine("broken", FEATURES["v3"])
    operation(machine)
    assert any(machine.problems(number) for number in range(60))


@pytest.mark.parametrize("operation", [rebased, flattened, committed])
def test_a_file_that_never_waits_is_caught(operation):
    caught = 0
    for seed in range(3):
        machine = Machine(f"hasty {seed}", FEATURES["v3"], volume=Hasty)
        operation(machine)
        caught += any(machine.problems(number) for number in range(60))
    assert caught
