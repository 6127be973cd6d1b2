"""Power cuts in every writer of a foreign format: nothing flushed is lost, and it opens again.

``WIRT_CUTS`` says how many cuts each case gets (the default keeps the suite short).
"""

import os
import random

import pytest

from tests.image.formats.support import MIB, made, opened
from tests.image.powercut import Recorder, cut, lost_bytes
from tests.image.qcow2.support import Memory
from wirt.errors import ImageError
from wirt.image.base import OpenOptions, Overlay, Resizable
from wirt.image.formats import parallels, vdi
from wirt.image.formats.vmdk import create as vmdk_create
from wirt.image.formats.vpc import format as vpc_format
from wirt.image.rebase import keep_what_differs
from wirt.image.registry import find_format

CUTS = int(os.environ.get("WIRT_CUTS") or 6)
# How long disks are here, what they are made with, and what is written at a time.
CASES = {
    "vdi": (60_416, {}, 9_000),
    "vpc": (150_016, {}, 40_000),
    "vhdx": (5 * MIB, {"block_size": str(MIB)}, 20_000),
    "qed": (400_384, {}, 90_000),
    "qcow": (60_416, {}, 9_000),
    "parallels": (40_448, {}, 6_000),
    "bochs": (2 * MIB, {}, 20_000),
    "vmdk": (60_416, {}, 9_000),
    "vmdk-cowd": (60_416, {}, 9_000),
}
WITH_PARENT = ["vdi", "vpc", "vhdx", "qed", "qcow", "vmdk"]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    # Small enough for disks to outgrow their tables.
    monkeypatch.setattr(vdi, "_MIB", 512)
    monkeypatch.setattr(parallels, "_cluster_sectors", lambda _: 1)
    monkeypatch.setattr(vpc_format, "BLOCK", 32768)
    monkeypatch.setattr(vmdk_create, "_GRAIN", 2)
    monkeypatch.setattr(vmdk_create, "_TABLE_ENTRIES", 128)


class Disk(Recorder):
    """``hasty``: what the image itself waits for never happens."""

    hasty = False

    def flush(self):
        if not self.hasty:
            super().flush()

    def must_be(self, model):
        super().flush()
        super().must_be(model)


class Session:
    def __init__(self, name, seed, directory, *, backed=False, hasty=False):
        self.rng = random.Random(f"{name} {seed} {backed}")
        self.format = find_format(name.split("-")[0])
        size, options, self.longest = CASES[name]
        self.base, start = None, Memory()
        start.name = str(directory / f"child.{name}")
        disk = bytearray(size)
        if backed:
            self.base, disk = self.parent(name, directory, size)
            options = options | {"backing_file": f"base.{name}", "backing_fmt": name}
        if name == "vmdk-cowd":
            vmdk_create.write_cowd(start, size)  # without its descriptor, which is a file
        else:
            self.format.create(start, size, options)
        self.storage = Disk(bytes(start.data))
        self.storage.name, self.storage.hasty = start.name, hasty
        self.image = self.opened(self.storage, writable=True)
        self.disk = bytes(disk)
        Recorder.must_be(self.storage, self.disk)

    def parent(self, name, directory, size):
        path = made(directory / f"base.{name}", name, size, **CASES[name][1])
        below = bytearray(self.rng.randbytes(size))
        with opened(path, name, writable=True) as image:
            image.pwrite(0, below)
        return opened(path, name), below

    def opened(self, storage, **options):
        image = self.format.open(storage, OpenOptions(with_backing=False, **options))
        if self.base is not None and image.info().backing_name:
            image.backing = self.base
        return image

    def change(self, disk):
        self.disk = bytes(disk)
        self.storage.may_be(self.disk)

    def write(self):
        disk = bytearray(self.disk)
        offset = self.rng.randrange(len(disk))
        data = self.rng.randbytes(self.rng.randrange(1, min(self.longest, len(disk) - offset) + 1))
        disk[offset : offset + len(data)] = data
        self.change(disk)
        self.image.pwrite(offset, data)

    def zero(self):
        disk = bytearray(self.disk)
        offset = self.rng.randrange(len(disk))
        length = self.rng.randrange(1, min(3 * self.longest, len(disk) - offset) + 1)
        disk[offset : offset + length] = bytes(length)
        self.change(disk)
        self.image.write_zeroes(offset, length, unmap=self.rng.random() < 0.7)

    def flush(self):
        self.image.flush()
        self.storage.must_be(self.disk)

    def problems(self, state):
        """Say what is wrong with what a cut left, before and after a repair, and a write."""
        models = [state.durable, *state.possible]
        try:
            image = self.opened(Memory(state.disk))
            found = [*lost_bytes(image.pread(0, image.virtual_size), models)]
            return found or self.repaired(Memory(state.disk), models)
        except ImageError as error:
            return [repr(error)]

    def repaired(self, storage, models):
        storage.name = self.storage.name
        image = self.opened(storage, writable=True, allow_dirty=True)
        if hasattr(image, "check"):
            result = image.check(repair="all")
            if result.corruptions:
                return [f"not repaired: {result.messages}"]
        disk = bytearray(image.pread(0, image.virtual_size))
        found = [*lost_bytes(bytes(disk), models)]
        offset = self.rng.randrange(len(disk) - 700)
        disk[offset : offset + 700] = b"again" * 140
        image.pwrite(offset, b"again" * 140)
        image.backing = None  # it is needed again
        image.close()
        image = self.opened(Memory(storage.data))
        if image.pread(0, len(disk)) != disk:
            found.append("a write after the repair damaged the disk")
        return found


def write_session(session):
    for _ in range(14):
        session.write() if session.rng.random() < 0.7 else session.zero()
        if session.rng.random() < 0.5:
            session.flush()


def resize_session(session):
    for _ in range(5):
        for _ in range(2):
            session.write()
        session.flush()
        size = session.rng.randrange(100, 2 * CASES[session.format.name][0] // 512) * 512
        if session.format.name == "vhdx":
            size = max(size, MIB)
            # As if the table filled its region, which takes a disk of 128 GiB.
            place = session.image._bat_region[0]
            session.image._bat_region = (place, 8 * len(session.image._table))
        session.change(session.disk[:size].ljust(size, b"\0"))
        session.image.resize(size)
        session.storage.must_be(session.disk)
    session.write()
    session.flush()


def grow_session(session):
    """A table that needs the place of the first blocks."""
    session.write()
    session.flush()
    size = 3 * len(session.disk) // 512 * 512
    session.change(session.disk.ljust(size, b"\0"))
    session.image.resize(size)
    session.storage.must_be(session.disk)


def empty_session(session):
    """What a commit ends with: the parent has everything by then."""
    for _ in range(4):
        session.write()
    session.flush()
    base = session.base.pread(0, session.base.virtual_size)
    session.change(base[: len(session.disk)].ljust(len(session.disk), b"\0"))
    session.image.make_empty()
    session.image.flush()
    session.storage.must_be(session.disk)
    write_session(session)


def link_session(session):
    """Alone, and a child again of the same parent: the guest sees no difference."""
    for _ in range(4):
        session.write()
    session.flush()
    keep_what_differs(session.image, None)
    session.image.set_backing(None, None)
    session.image.flush()
    session.image.backing = None
    session.storage.must_be(session.disk)
    session.write()
    session.flush()
    keep_what_differs(session.image, session.base)
    name = session.format.name
    session.image.set_backing(f"base.{name}", name)
    session.image.flush()
    session.image.backing = session.base
    session.storage.must_be(session.disk)
    session.write()
    session.flush()


def cases():
    for name in CASES:
        kinds = find_format(name.split("-")[0]).images
        yield pytest.param(name, write_session, False, id=f"{name}-write")
        if any(issubclass(kind, Resizable) for kind in kinds):
            yield pytest.param(name, resize_session, False, id=f"{name}-resize")
        if name in WITH_PARENT:
            assert any(issubclass(kind, Overlay) for kind in kinds)
            for operation in (write_session, resize_session, empty_session, link_session):
                if operation is resize_session and name == "qcow":
                    continue
                word = operation.__name__.removesuffix("_session")
                yield pytest.param(name, operation, True, id=f"{name}-child-{word}")


def failures(session, cuts, seed=0):
    rng = random.Random(seed)
    found = []
    for number in range(cuts):
        problems = session.problems(cut(session.storage.log, rng))
        if problems:
            found.append((number, problems))
    return found


@pytest.mark.parametrize(("name", "operation", "backed"), list(cases()))
def test_no_cut_loses_what_was_flushed(name, operation, backed, tmp_path):
    session = Session(name, 1, tmp_path, backed=backed)
    operation(session)
    assert session.image.pread(0, len(session.disk)) == session.disk
    assert failures(session, CUTS) == []


# A new block over nothing shows zeros before and after its data: only what is copied can be lost.
# A qcow child copies nothing either: its clusters are sectors.
@pytest.mark.parametrize("name", ["vdi", "vpc", "vhdx", "qed", "vmdk", "parallels"])
def test_a_writer_that_never_waits_is_caught(name, tmp_path):
    caught = 0
    for seed in range(3):
        directory = tmp_path / str(seed)
        directory.mkdir()
        session = Session(name, seed, directory, backed=name in WITH_PARENT, hasty=True)
        (write_session if name in WITH_PARENT else grow_session)(session)
        caught += bool(failures(session, 12, seed))
    assert caught
