"""Writing, with a bytearray as the model and qemu-img as the judge."""

import random

import pytest

from tests.image.qcow2.support import assert_disk, create, open_image, qemu_img

pytestmark = pytest.mark.needs_qemu_img

SIZE = 3 * (1 << 20) + 512 * 5
FEATURES = {
    "v2": {"compat": "0.10"},
    "v3": {},
    "512": {"cluster_size": "512"},
    "4k": {"cluster_size": "4096"},
    "2M": {"cluster_size": "2M"},
    "extended": {"extended_l2": "on", "cluster_size": "16384"},
    "refcount1": {"refcount_bits": "1", "cluster_size": "512"},
    "refcount64": {"refcount_bits": "64", "cluster_size": "512"},
    "data file": {"data_file": "d.raw"},
    "raw data file": {"data_file": "d.raw", "data_file_raw": "on"},
    "lazy": {"lazy_refcounts": "on"},
}


@pytest.mark.parametrize("backed", [False, True], ids=["alone", "backed"])
@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
def test_random_writes_read_back_and_check_clean(tmp_path, features, backed):
    path, model = tmp_path / "a.qcow2", bytearray(SIZE)
    options = dict(features)
    rng = random.Random(str(features) + str(backed))
    if backed:
        if "data_file_raw" in options:
            pytest.skip("a raw data file has no backing image")
        base = rng.randbytes(SIZE - 70000)
        (tmp_path / "base.raw").write_bytes(base)
        model[: len(base)] = base
        options |= {"backing_file": "base.raw", "backing_fmt": "raw"}
    create(path, SIZE, **options)
    with open_image(path, writable=True) as image:
        for _ in range(60):
            offset = rng.randrange(SIZE)
            length = min(SIZE - offset, rng.choice([1, 512, 4096, 70000, 300000]))
            action = rng.randrange(4)
            if action < 2:
                data = rng.randbytes(length)
                image.pwrite(offset, data)
                model[offset : offset + length] = data
            elif action == 2:
                image.write_zeroes(offset, length, unmap=rng.random() < 0.5)
                model[offset : offset + length] = bytes(length)
            else:
                image.flush()
            assert image.pread(0, SIZE) == model
    assert_disk(path, model, tmp_path)
    if "data_file_raw" in features:
        assert (tmp_path / "d.raw").read_bytes() == model


STEP = 256 << 10
SHAPES = {
    "empty": [],
    "in order": [0, 1, 2, 3],
    "reversed": [3, 2, 1, 0],
    "hole first": [2, 3],
    "hole between": [0, 3, 9],
    "swapped": [1, 0, 3, 2],
}


@pytest.mark.parametrize("backed", [False, True], ids=["alone", "backed"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
def test_every_shape_of_allocation_is_what_qemu_reads(tmp_path, features, shape, backed):
    path, model, options = tmp_path / "a.qcow2", bytearray(SIZE), dict(features)
    if backed:
        if "data_file_raw" in options:
            pytest.skip("a raw data file has no backing image")
        model[:] = b"backing!" * (SIZE // 8)
        (tmp_path / "base.raw").write_bytes(model)
        options |= {"backing_file": "base.raw", "backing_fmt": "raw"}
    create(path, SIZE, **options)
    with open_image(path, writable=True) as image:
        for number, place in enumerate(shape, 1):
            # The odd length leaves a part of the last cluster to what was there before.
            data = bytes([number]) * (STEP - 512)
            image.pwrite(place * STEP, data)
            model[place * STEP : place * STEP + len(data)] = data
        if shape:
            image.write_zeroes(5 * STEP, STEP)
            model[5 * STEP : 6 * STEP] = bytes(STEP)
    assert_disk(path, model, tmp_path)


def test_our_empty_image_equals_qemus_for_qemu(tmp_path):
    create(tmp_path / "a.qcow2", 1 << 30)
    qemu_img("check", tmp_path / "a.qcow2")
    assert "1 GiB" in qemu_img("info", tmp_path / "a.qcow2")


def test_zeroing_the_end_of_a_short_disk_leaves_the_rest_of_its_cluster(tmp_path):
    (tmp_path / "base.raw").write_bytes(b"b" * 512)
    path = create(tmp_path / "a.qcow2", 512, backing_file="base.raw", backing_fmt="raw")
    with open_image(path, writable=True) as image:
        image.write_zeroes(511, 1, unmap=False)
    assert_disk(path, b"b" * 511 + b"\0", tmp_path)
