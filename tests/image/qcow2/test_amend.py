"""amend, the backing link, emptying: header changes that QEMU must understand."""

import json
import random

import pytest

from tests.image.powercut import Recorder, cut
from tests.image.qcow2.support import Memory, assert_disk, create, open_image, qemu_img
from wirt.errors import ImageIoError, UnsupportedImage, UsageError
from wirt.image.base import OpenOptions
from wirt.image.formats.qcow2 import FORMAT
from wirt.image.formats.qcow2.extensions import Extension
from wirt.image.formats.qcow2.header import Header

pytestmark = pytest.mark.needs_qemu_img
MIB = 1 << 20


def specific(path):
    info = json.loads(qemu_img("info", "--output=json", path))
    return info["format-specific"]["data"]


@pytest.mark.parametrize("bits", ["1", "2", "8", "32", "64"])
def test_the_refcount_width_is_changed(tmp_path, bits):
    path, model = create(tmp_path / "a.qcow2", MIB, cluster_size="4096"), bytearray(MIB)
    with open_image(path, writable=True) as image:
        image.pwrite(9000, b"w" * 100_000)
        image.amend({"refcount_bits": bits})
        image.pwrite(500_000, b"v" * 50_000)
    model[9000:109_000], model[500_000:550_000] = b"w" * 100_000, b"v" * 50_000
    assert specific(path)["refcount-bits"] == int(bits)
    assert_disk(path, model, tmp_path)


@pytest.mark.parametrize("backed", [False, True], ids=["alone", "backed"])
def test_the_version_is_changed_there_and_back(tmp_path, backed):
    path, model = tmp_path / "a.qcow2", bytearray(MIB)
    options = {}
    if backed:
        (tmp_path / "base.raw").write_bytes(b"b" * MIB)
        options = {"backing_file": "base.raw", "backing_fmt": "raw"}
        model[:] = b"b" * MIB
    create(path, MIB, **options)
    with open_image(path, writable=True) as image:
        image.pwrite(70_000, b"x" * 100_000)
        image.write_zeroes(300_000, 300_000)
        image.amend({"compat": "0.10"})
    model[70_000:170_000], model[300_000:600_000] = b"x" * 100_000, bytes(300_000)
    assert specific(path)["compat"] == "0.10"
    assert_disk(path, model, tmp_path)
    with open_image(path, writable=True) as image:
        image.amend({"compat": "1.1", "lazy_refcounts": "on"})
        image.write_zeroes(0, MIB // 2)
    model[: MIB // 2] = bytes(MIB // 2)
    assert specific(path)["lazy-refcounts"]
    assert_disk(path, model, tmp_path)


def test_what_cannot_be_amended_is_refused(tmp_path):
    path = create(tmp_path / "a.qcow2", MIB)
    with open_image(path, writable=True) as image:
        for options in (
            {"cluster_size": "4096"},
            {"extended_l2": "on"},
            {"compression_type": "zstd"},
            {"data_file": "x"},
            {"preallocation": "full"},
            {"encrypt.format": "luks"},
        ):
            with pytest.raises(UsageError):
                image.amend(options)
        image.bitmap_add("b")
        with pytest.raises(UnsupportedImage):
            image.amend({"compat": "0.10"})


def test_the_backing_link_is_changed_and_removed(tmp_path):
    for name, byte in (("one", b"1"), ("t" * 200, b"2")):
        (tmp_path / name).write_bytes(byte * MIB)
    path = create(tmp_path / "a.qcow2", MIB, backing_file="one", backing_fmt="raw")
    with open_image(path, writable=True) as image:
        image.pwrite(0, b"own")
        image.set_backing("t" * 200, "raw")
    assert_disk(path, b"own" + b"1" * 65533 + b"2" * (MIB - 65536), tmp_path)
    with open_image(path, writable=True) as image:
        image.set_backing(None, None)
    assert_disk(path, b"own" + b"1" * 65533 + bytes(MIB - 65536), tmp_path)


def test_emptying_shows_the_backing_image_again(tmp_path):
    (tmp_path / "base.raw").write_bytes(b"b" * MIB)
    path = create(tmp_path / "a.qcow2", MIB, backing_file="base.raw", backing_fmt="raw")
    with open_image(path, writable=True) as image:
        image.pwrite(0, b"own" * 100_000)
        image.snapshot_create("kept")
        image.make_empty()
        assert image.snapshot_view("kept").pread(0, 3) == b"own"
        image.snapshot_delete("kept")
    assert_disk(path, b"b" * MIB, tmp_path)


def test_reading_through_a_backing_image_that_is_not_open_is_refused(tmp_path):
    storage = Memory()
    FORMAT.create(storage, MIB, {"backing_file": "base"})
    with pytest.raises(ImageIoError, match="backing"):
        FORMAT.open(storage, OpenOptions()).pread(0, 512)
    alone = FORMAT.open(storage, OpenOptions(with_backing=False))
    assert alone.pread(0, 512) == bytes(512)


@pytest.mark.parametrize("cluster", ["4096", "65536"])
@pytest.mark.parametrize("length", [10, 300, 1000])
def test_a_power_cut_leaves_the_old_backing_name_or_the_new(cluster, length):
    start = Memory()
    names = [letter * length for letter in "abcd"]
    FORMAT.create(start, MIB, {"cluster_size": cluster, "backing_file": names[0]})
    storage = Recorder(bytes(start.data))
    image = FORMAT.open(storage, OpenOptions(writable=True))
    storage.must_be(names[0])
    for name in names[1:]:
        storage.may_be(name)
        image.set_backing(name, "qcow2" if name[0] == "c" else "raw")
        storage.must_be(name)
    rng = random.Random(length)
    for _ in range(100):
        state = cut(storage.log, rng)
        found = Header.parse(Memory(state.disk)).backing_name
        assert found in {state.durable, *state.possible}


def test_unknown_extensions_are_kept():
    storage = Memory()
    FORMAT.create(storage, MIB, {})
    image = FORMAT.open(storage, OpenOptions(writable=True))
    image.header.extensions.append(Extension(0x12345678, b"of another program"))
    image.set_backing("base", "raw")
    image.set_backing("other", "qcow2")
    again = FORMAT.open(storage, OpenOptions())
    assert again.header.extension(0x12345678) == b"of another program"
    assert again.backing_format == "qcow2"
