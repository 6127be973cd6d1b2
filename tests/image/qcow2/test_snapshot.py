"""Internal snapshots: ours used by QEMU, QEMU's used by us, and the model in between."""

import random

import pytest

from tests.image.qcow2.support import (
    Memory,
    assert_disk,
    create,
    open_image,
    qemu_img,
    qemu_io,
)
from wirt.errors import ImageError, NotFound, UnsupportedImage, UsageError
from wirt.image.base import OpenOptions
from wirt.image.formats.qcow2 import FORMAT, tally

MIB = 1 << 20
FEATURES = {
    "v2": {"compat": "0.10"},
    "512": {"cluster_size": "512"},
    "extended": {"extended_l2": "on"},
    "refcount2": {"refcount_bits": "2", "cluster_size": "4096"},
}


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
@pytest.mark.parametrize("vector", [False, True], ids=["plain", "numpy"])
def test_random_snapshots_keep_every_disk_they_should(tmp_path, features, vector, monkeypatch):
    if vector:
        monkeypatch.setattr(tally, "_VECTOR_CLUSTERS", 0)
    path, rng = create(tmp_path / "a.qcow2", MIB, **features), random.Random(str(features))
    model, kept = bytearray(MIB), {}
    most = 2 if "refcount_bits" in features else 9
    with open_image(path, writable=True) as image:
        for number in range(30):
            data, offset = rng.randbytes(rng.randrange(1, 90000)), rng.randrange(MIB - 90000)
            image.pwrite(offset, data)
            model[offset : offset + len(data)] = data
            action = rng.randrange(4)
            if action == 0 and len(kept) < most:
                image.snapshot_create(f"s{number}")
                kept[f"s{number}"] = bytes(model)
            elif action == 1 and kept:
                name = rng.choice(sorted(kept))
                if most > 2:
                    image.snapshot_apply(name)
                    model[:] = kept[name]
            elif action == 2 and len(kept) > 1:
                name = rng.choice(sorted(kept))
                image.snapshot_delete(name)
                del kept[name]
            assert image.pread(0, MIB) == model
        for name, disk in kept.items():
            assert image.snapshot_view(name).pread(0, MIB) == disk
    assert_disk(path, model, tmp_path)
    if "refcount_bits" not in features:
        for name, disk in kept.items():
            qemu_img("snapshot", "-a", name, path)
            assert_disk(path, disk, tmp_path)
        for name, disk in kept.items():
            qemu_img("snapshot", "-d", name, path)
            model[:] = disk
    assert_disk(path, model, tmp_path)


@pytest.mark.needs_qemu_img
def test_qemus_snapshots_are_listed_applied_and_deleted(tmp_path):
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, MIB)
    first, second = b"\1" * MIB, b"\1" * 4096 + b"\2" * (MIB - 4096)
    qemu_io(path, "write -P 1 0 1M")
    qemu_img("snapshot", "-c", "one", path)
    qemu_io(path, "write -P 2 4096 1044480")
    qemu_img("snapshot", "-c", "two", path)
    qemu_io(path, "write -P 3 0 1M")
    with open_image(path, writable=True) as image:
        assert [(s.id, s.name) for s in image.snapshots()] == [("1", "one"), ("2", "two")]
        assert image.snapshot_view("two").pread(0, MIB) == second
        image.pwrite(0, b"\4" * 512)
        assert image.pread(0, 1024) == b"\4" * 512 + b"\3" * 512
    assert_disk(path, b"\4" * 512 + b"\3" * (MIB - 512), tmp_path)
    with open_image(path, writable=True) as image:
        image.snapshot_apply("one")
    assert_disk(path, first, tmp_path)
    with open_image(path, writable=True) as image:
        image.snapshot_delete("one")
    assert_disk(path, first, tmp_path)
    with open_image(path, writable=True) as image:
        image.snapshot_apply("2")
        image.snapshot_delete("2")
        assert image.snapshots() == []
    assert_disk(path, second, tmp_path)


@pytest.mark.needs_qemu_img
def test_applying_restores_the_size_of_the_time(tmp_path):
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, MIB)
    qemu_io(path, "write -P 1 0 1M")
    qemu_img("snapshot", "-c", "small", path)
    qemu_img("resize", "-q", path, "5M")
    with open_image(path, writable=True) as image:
        image.snapshot_apply("small")
        assert image.virtual_size == MIB
    assert_disk(path, b"\1" * MIB, tmp_path)


def test_deleting_gives_all_clusters_back():
    storage = Memory()
    FORMAT.create(storage, MIB, {"cluster_size": "4096"})
    image = FORMAT.open(storage, OpenOptions(writable=True))
    image.pwrite(0, b"x" * MIB)
    image.flush()
    image.snapshot_create("one")
    image.pwrite(0, b"y" * MIB)
    image.snapshot_delete("one")
    image.flush()
    result = image.check()
    assert (result.leaks, result.corruptions) == (0, 0)
    used = sum(value > 0 for value in image.volume.refcounts.block(0).words)
    assert used == 256 + 5  # header, refcount table and block, L1, L2


def test_an_unknown_snapshot_is_not_found():
    storage = Memory()
    FORMAT.create(storage, MIB, {})
    image = FORMAT.open(storage, OpenOptions(writable=True))
    for verb in (image.snapshot_apply, image.snapshot_delete, image.snapshot_view):
        with pytest.raises(NotFound):
            verb("nothing")
    with pytest.raises(UsageError):
        image.snapshot_create("n" * 256)


def test_one_bit_refcounts_cannot_share_and_nothing_is_changed():
    storage = Memory()
    FORMAT.create(storage, MIB, {"refcount_bits": "1"})
    image = FORMAT.open(storage, OpenOptions(writable=True))
    image.pwrite(0, b"data")
    with pytest.raises(UnsupportedImage, match="refcount"):
        image.snapshot_create("one")
    image.flush()
    result = image.check()
    assert (result.leaks, result.corruptions) == (0, 0)
    assert image.pread(0, 4) == b"data"


def test_a_failing_disk_leaves_the_old_state(monkeypatch):
    storage = Memory()
    FORMAT.create(storage, MIB, {"cluster_size": "4096"})
    image = FORMAT.open(storage, OpenOptions(writable=True))
    image.pwrite(0, b"x" * 70000)
    image.flush()

    def full(offset, data):
        raise ImageError("no space left")

    monkeypatch.setattr(storage, "pwrite", full)
    with pytest.raises(ImageError):
        image.snapshot_create("one")
    monkeypatch.undo()
    image.flush()
    result = image.check()
    assert (result.leaks, result.corruptions) == (0, 0)
    assert image.snapshots() == []
