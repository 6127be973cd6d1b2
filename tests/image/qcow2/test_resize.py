"""Resize and preallocation, with qemu-img as the judge."""

import random

import pytest

from tests.image.qcow2.support import (
    Memory,
    assert_disk,
    create,
    open_image,
    qemu_img,
)
from wirt.errors import UnsupportedImage, UsageError
from wirt.image.base import ExtentKind, OpenOptions
from wirt.image.formats.qcow2 import FORMAT

MIB = 1 << 20
FEATURES = {
    "v2": {"compat": "0.10"},
    "512": {"cluster_size": "512"},
    "64k": {},
    "extended": {"extended_l2": "on"},
    "refcount64": {"refcount_bits": "64", "cluster_size": "512"},
    "data file": {"data_file": "d.raw"},
    "raw data file": {"data_file": "d.raw", "data_file_raw": "on"},
}


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
@pytest.mark.parametrize("mode", ["off", "metadata", "falloc", "full"])
@pytest.mark.parametrize("backed", [False, True], ids=["alone", "backed"])
def test_growing_and_shrinking_show_zeros_in_the_new_part(tmp_path, features, mode, backed):
    rng = random.Random(f"{features}{mode}{backed}")
    path, size, options = tmp_path / "a.qcow2", MIB + 1536, dict(features)
    model = bytearray(size)
    if backed and "data_file_raw" in options:
        pytest.skip("a raw data file has no backing image")
    if backed:
        base = rng.randbytes(6 * MIB)
        (tmp_path / "base.raw").write_bytes(base)
        options |= {"backing_file": "base.raw", "backing_fmt": "raw"}
        model[:] = base[:size]
    create(path, size, **options)
    with open_image(path, writable=True) as image:
        for new in (3 * MIB, 5 * MIB + 512, 700_416, 4 * MIB, 512, 2 * MIB):
            data = rng.randbytes(90_000)
            offset = rng.randrange(max(1, len(model) - len(data)))
            data = data[: len(model) - offset]
            image.pwrite(offset, data)
            model[offset : offset + len(data)] = data
            image.resize(new, preallocation=mode if new > len(model) else "off")
            model = model[:new] + bytes(max(0, new - len(model)))
            assert image.pread(0, new) == model
    assert_disk(path, model, tmp_path)
    if "data_file_raw" in features:
        assert (tmp_path / "d.raw").read_bytes() == model


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("mode", ["metadata", "falloc", "full"])
@pytest.mark.parametrize("features", list(FEATURES.values())[:5], ids=list(FEATURES)[:5])
def test_preallocated_images_are_allocated_and_read_as_zeros(tmp_path, mode, features):
    path = create(tmp_path / "a.qcow2", 3 * MIB, preallocation=mode, **features)
    with open_image(path) as image:
        kinds = {extent.kind for extent in image.extents(0, 3 * MIB)}
        assert kinds == {ExtentKind.DATA}
        if mode != "metadata":
            assert image.info().allocated_size >= 3 * MIB
    assert_disk(path, bytes(3 * MIB), tmp_path)


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("mode", ["metadata", "falloc", "full"])
def test_a_preallocated_overlay_shows_its_backing_image(tmp_path, mode):
    base = random.Random(mode).randbytes(3 * MIB)
    (tmp_path / "base.raw").write_bytes(base)
    options = {"extended_l2": "on", "backing_file": "base.raw", "backing_fmt": "raw"}
    path = create(tmp_path / "a.qcow2", 3 * MIB, preallocation=mode, **options)
    assert_disk(path, base, tmp_path)
    size, model = path.stat().st_size, bytearray(base)
    with open_image(path, writable=True) as image:
        image.pwrite(100_000, b"w" * 9000)
    model[100_000:109_000] = b"w" * 9000
    assert_disk(path, model, tmp_path)
    assert path.stat().st_size == size


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("mode", ["falloc", "full"])
def test_a_disk_that_ends_inside_a_cluster_has_that_cluster_whole(tmp_path, mode):
    path = create(tmp_path / "a.qcow2", 2_048_000)
    with open_image(path, writable=True) as image:
        image.resize(2_129_920, preallocation=mode)
    before = path.stat().st_blocks
    with open_image(path, writable=True) as image:
        image.pwrite(2_048_000, b"w" * 81_920)
    assert path.stat().st_blocks == before
    assert path.stat().st_size % 65_536 == 0


@pytest.mark.needs_qemu_img
def test_a_raw_data_file_is_preallocated_by_whoever_attaches_it(tmp_path):
    path = create(tmp_path / "a.qcow2", MIB, data_file="d.raw", data_file_raw="on")
    with open_image(path, writable=True) as image:
        image.preallocate("metadata")
    (tmp_path / "d.raw").write_bytes(b"r" * MIB)
    assert_disk(path, b"r" * MIB, tmp_path)


@pytest.mark.needs_qemu_img
def test_a_very_large_disk_grows_in_steps_that_qemu_accepts(tmp_path):
    path = create(tmp_path / "a.qcow2", 0)
    with open_image(path, writable=True) as image:
        for size in (MIB, 1 << 40, 64 << 40):
            image.resize(size)
            image.pwrite(size - 512, b"e" * 512)
    qemu_img("check", path)
    with open_image(path) as image:
        assert image.pread((1 << 40) - 512, 512) == b"e" * 512


def test_what_the_format_cannot_hold_is_refused():
    storage = Memory()
    FORMAT.create(storage, MIB, {"cluster_size": "512"})
    image = FORMAT.open(storage, OpenOptions(writable=True))
    with pytest.raises(UnsupportedImage):
        image.resize(1 << 50)
    with pytest.raises(UsageError):
        image.resize(MIB + 1)
    with pytest.raises(UsageError):
        image.resize(512, preallocation="full")
    with pytest.raises(UnsupportedImage):
        FORMAT.create(Memory(), 1 << 60, {})


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"compat": "0.10", "lazy_refcounts": "on"}, "Lazy"),
        ({"compat": "0.10", "refcount_bits": "1"}, "Different refcount"),
        ({"compat": "0.10", "compression_type": "zstd"}, "Compression"),
        ({"compat": "9"}, "version"),
        ({"cluster_size": "300"}, "Cluster size"),
        ({"refcount_bits": "3"}, "Refcount width"),
        ({"extended_l2": "on", "cluster_size": "4096"}, "Extended"),
        ({"extended_l2": "maybe"}, "extended_l2"),
        ({"colour": "red"}, "colour"),
        ({"preallocation": "most"}, "preallocation"),
        ({"backing_fmt": "raw"}, "Backing format"),
        ({"data_file_raw": "on"}, "data-file-raw"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, word):
    with pytest.raises(UsageError, match=word):
        FORMAT.create(Memory(), MIB, options)
