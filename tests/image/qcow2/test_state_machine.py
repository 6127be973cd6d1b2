"""Any order of operations keeps the disk equal to the model and the image consistent."""

import zlib

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.image.qcow2.support import Memory
from tests.image.qcow2.test_powercut import Backing
from wirt.image.base import OpenOptions
from wirt.image.formats.qcow2 import FORMAT

SIZE = 96 * 1024
OPTIONS = st.sampled_from(
    [
        {"cluster_size": "512"},
        {"compat": "0.10", "cluster_size": "1024"},
        {"cluster_size": "16384", "extended_l2": "on"},
        {"cluster_size": "4096", "refcount_bits": "4"},
    ]
)
PLACES = st.integers(0, SIZE - 1)
LENGTHS = st.integers(1, 20_000)


class Disk(RuleBasedStateMachine):
    """A qcow2 image in memory beside a bytearray."""

    @initialize(options=OPTIONS, backed=st.booleans())
    def create(self, options, backed):
        self.base = bytes(range(1, 252)) * 300 if backed else None
        options = options | ({"backing_file": "base"} if backed else {})
        self.storage = Memory()
        FORMAT.create(self.storage, SIZE, options)
        self.model = bytearray(SIZE)
        if backed:
            self.model[: len(self.base)] = self.base
        self.kept = {}
        self.reopen(flush=False)

    @rule(flush=st.just(True))
    def reopen(self, flush):
        if flush:
            self.image.flush()
        self.image = FORMAT.open(self.storage, OpenOptions(writable=True))
        if self.base is not None:
            self.image.backing = Backing(self.base)

    @rule(place=PLACES, length=LENGTHS, fill=st.integers(0, 255))
    def write(self, place, length, fill):
        place, length = self._inside(place, length)
        self.image.pwrite(place, bytes([fill]) * length)
        self.model[place : place + length] = bytes([fill]) * length

    @rule(place=PLACES, length=LENGTHS, unmap=st.booleans())
    def zero(self, place, length, unmap):
        place, length = self._inside(place, length)
        self.image.write_zeroes(place, length, unmap=unmap)
        self.model[place : place + length] = bytes(length)

    @rule(place=PLACES, fill=st.integers(0, 255))
    def write_compressed(self, place, fill):
        unit = self.image.compression_unit
        place = self._inside(place, 1)[0] // unit * unit
        plain = bytes([fill]) * unit
        packer = zlib.compressobj(wbits=-12)
        self.image.write_compressed(place, packer.compress(plain) + packer.flush(), plain)
        part = min(unit, len(self.model) - place)
        self.model[place : place + part] = plain[:part]

    @rule(sectors=st.integers(1, 400))
    def resize(self, sectors):
        size = sectors * 512
        if self.kept and self.image.header.version < 3 and size < len(self.model):
            return
        self.image.resize(size)
        self.model = self.model[:size] + bytes(max(0, size - len(self.model)))

    @precondition(lambda self: len(self.kept) < 4)
    @rule(name=st.sampled_from("abcd"))
    def snapshot(self, name):
        if name not in self.kept:
            self.image.snapshot_create(name)
            self.kept[name] = bytes(self.model)

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def apply(self, data):
        name = data.draw(st.sampled_from(sorted(self.kept)))
        self.image.snapshot_apply(name)
        self.model = bytearray(self.kept[name])

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def delete(self, data):
        name = data.draw(st.sampled_from(sorted(self.kept)))
        self.image.snapshot_delete(name)
        del self.kept[name]

    def _inside(self, place, length):
        place %= len(self.model)
        return place, min(length, len(self.model) - place)

    @invariant()
    def the_disk_is_the_model(self):
        assert self.image.virtual_size == len(self.model)
        assert self.image.pread(0, len(self.model)) == self.model
        for name, disk in self.kept.items():
            assert self.image.snapshot_view(name).pread(0, len(disk)) == disk

    @invariant()
    def the_image_is_consistent(self):
        result = self.image.check()
        assert (result.corruptions, result.leaks) == (0, 0), result.messages


TestDisk = Disk.TestCase
TestDisk.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
