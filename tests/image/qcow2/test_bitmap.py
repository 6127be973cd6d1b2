"""Persistent bitmaps: QEMU's read by us, ours read by QEMU, and recording what is written."""

import json
import random

import pytest

from tests.image.qcow2.support import Memory, assert_disk, create, open_image, qemu_img, qemu_io
from wirt.errors import (
    AlreadyExists,
    NotFound,
    OutOfBounds,
    UnsupportedImage,
    UsageError,
)
from wirt.image.base import Budget, OpenOptions
from wirt.image.formats.qcow2 import FORMAT, bitset
from wirt.image.formats.qcow2.extensions import FEATURE_NAMES

MIB = 1 << 20


def memory_image(**options):
    storage = Memory()
    FORMAT.create(storage, MIB, options)
    return FORMAT.open(storage, OpenOptions(writable=True))


def qemu_bitmaps(path):
    info = json.loads(qemu_img("info", "--output=json", path))
    return info["format-specific"]["data"].get("bitmaps", [])


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("cluster", ["512", "65536"])
def test_bitmaps_of_ours_satisfy_qemu(tmp_path, cluster):
    path = create(tmp_path / "a.qcow2", MIB, cluster_size=cluster)
    with open_image(path, writable=True) as image:
        image.bitmap_add("one", granularity=4096)
        image.bitmap_add("two", enabled=False)
        image.pwrite(8192, b"x" * 5000)
        assert list(image.bitmap_dirty("one")) == [(8192, 8192)]
        assert list(image.bitmap_dirty("two")) == []
    found = {item["name"]: item for item in qemu_bitmaps(path)}
    assert found["one"] == {"name": "one", "granularity": 4096, "flags": ["auto"]}
    assert found["two"]["flags"] == []
    assert_disk(path, bytes(8192) + b"x" * 5000 + bytes(MIB - 13192), tmp_path)
    qemu_io(path, "write -P 1 512k 4096")
    qemu_img("bitmap", "--merge", "one", path, "two")
    qemu_img("bitmap", "--disable", path, "one")
    with open_image(path, writable=True) as image:
        assert list(image.bitmap_dirty("one")) == [(8192, 8192), (MIB // 2, 4096)]
        assert [length for _, length in image.bitmap_dirty("two")] != []
        assert [item.enabled for item in image.bitmaps()] == [False, False]
        image.bitmap_clear("two")
        image.bitmap_merge("two", image, "one")
        image.bitmap_remove("one")
        image.bitmap_enable("two")
        assert list(image.bitmap_dirty("two"))[-1][0] == MIB // 2
    assert [item["name"] for item in qemu_bitmaps(path)] == ["two"]
    qemu_img("check", path)
    with open_image(path, writable=True) as image:
        image.bitmap_remove("two")
        assert image.check().leaks == 0
    assert qemu_bitmaps(path) == []
    qemu_img("check", path)


@pytest.mark.needs_qemu_img
def test_a_bitmap_is_added_to_what_qemu_created_and_its_feature_names_stay(tmp_path):
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, MIB)
    with open_image(path, writable=True) as image:
        image.bitmap_add("b")
        assert image.header.extension(FEATURE_NAMES)
    with open_image(path) as image:
        assert image.header.extension(FEATURE_NAMES)
    assert qemu_bitmaps(path)[0]["name"] == "b"


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("size", [3 * MIB, 512 << 10])
def test_resizing_fits_the_bitmaps(tmp_path, size):
    path = create(tmp_path / "a.qcow2", MIB, cluster_size="512")
    with open_image(path, writable=True) as image:
        image.bitmap_add("b", granularity=512)
        image.pwrite(100, b"x")
        image.pwrite(MIB - 1, b"x")
        image.resize(size)
        dirty = list(image.bitmap_dirty("b"))
        assert dirty[0] == (0, 512)
        assert len(dirty) == (2 if size > MIB else 1)
    assert qemu_bitmaps(path)[0]["flags"] == ["auto"]
    qemu_img("check", path)


def test_everything_that_is_written_is_marked():
    image, rng = memory_image(), random.Random(7)
    image.bitmap_add("b", granularity=512)
    marked = set()
    for _ in range(40):
        offset, length = rng.randrange(MIB - 9000), rng.randrange(1, 9000)
        if rng.random() < 0.5:
            image.pwrite(offset, bytes(length))
        else:
            image.write_zeroes(offset, length)
        marked |= set(range(offset // 512, (offset + length - 1) // 512 + 1))
    found = set()
    for offset, length in image.bitmap_dirty("b"):
        found |= set(range(offset // 512, (offset + length) // 512))
    assert found == marked


def test_applying_a_snapshot_marks_the_whole_disk():
    image = memory_image()
    image.snapshot_create("s")
    image.bitmap_add("b")
    image.snapshot_apply("s")
    assert list(image.bitmap_dirty("b")) == [(0, MIB)]


def test_a_bitmap_in_use_can_only_be_removed():
    image = memory_image()
    image.bitmap_add("b")
    image.pwrite(0, b"x")
    image.flush()
    again = FORMAT.open(image.storage, OpenOptions(writable=True))
    assert again.bitmaps()[0].in_use
    for verb in (again.bitmap_clear, again.bitmap_enable, lambda n: list(again.bitmap_dirty(n))):
        with pytest.raises(UnsupportedImage, match="inconsistent"):
            verb("b")
    FORMAT.open(image.storage, OpenOptions(writable=True)).bitmap_remove("b")


def test_wrong_requests_are_refused():
    image = memory_image()
    image.bitmap_add("b")
    with pytest.raises(AlreadyExists):
        image.bitmap_add("b")
    with pytest.raises(NotFound):
        image.bitmap_remove("c")
    with pytest.raises(UsageError):
        image.bitmap_add("c", granularity=1000)
    with pytest.raises(UsageError):
        image.bitmap_add("")
    old = memory_image(compat="0.10")
    with pytest.raises(UnsupportedImage):
        old.bitmap_add("b")
    storage = Memory()
    FORMAT.create(storage, 1 << 40, {})
    small = OpenOptions(writable=True, budget=Budget(metadata_bytes=1 << 20))
    with pytest.raises(OutOfBounds):
        FORMAT.open(storage, small).bitmap_add("huge", granularity=512)


@pytest.mark.parametrize("seed", range(20))
def test_bit_runs_equal_the_plain_reading(seed):
    rng = random.Random(seed)
    count = rng.randrange(1, 70000)
    bits, plain = bytearray(-(-count // 8)), [False] * count
    for _ in range(rng.randrange(8)):
        first = rng.randrange(count)
        after = min(count, first + rng.choice([1, 7, 8, 9, 5000]))
        bitset.set_bits(bits, first, after)
        plain[first:after] = [True] * (after - first)
    found = [False] * count
    for first, length in bitset.runs(bits, count):
        assert not any(found[max(0, first - 1) : first + length])
        found[first : first + length] = [True] * length
    assert found == plain
