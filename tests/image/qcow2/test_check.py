"""check and repair, against qemu-img's own counting."""

import json
import random
import subprocess

import pytest

from tests.image.qcow2.support import Memory, assert_disk, create, open_image, qemu_img, qemu_io
from wirt.errors import UsageError
from wirt.image.base import OpenOptions
from wirt.image.formats.qcow2 import FORMAT, check
from wirt.image.formats.qcow2.l2 import COPIED

pytestmark = pytest.mark.needs_qemu_img
MIB = 1 << 20


def oracle(path):
    done = subprocess.run(
        ["qemu-img", "check", "--output=json", str(path)], capture_output=True, check=False
    )
    return json.loads(done.stdout)


def compare_with_oracle(path):
    theirs = oracle(path)
    with open_image(path) as image:
        ours = image.check()
    assert ours.corruptions == theirs.get("corruptions", 0), ours.messages
    assert ours.leaks == theirs.get("leaks", 0), ours.messages
    assert ours.total_clusters == theirs["total-clusters"]
    assert ours.allocated_clusters == theirs.get("allocated-clusters", 0)
    assert ours.fragmented_clusters == theirs.get("fragmented-clusters", 0)
    assert ours.compressed_clusters == theirs.get("compressed-clusters", 0)
    assert ours.image_end_offset == theirs["image-end-offset"]
    return ours


@pytest.mark.parametrize(
    "features",
    ["compat=0.10", "cluster_size=512", "cluster_size=2M", "extended_l2=on", "refcount_bits=1"],
)
@pytest.mark.parametrize("vector", [False, True], ids=["plain", "numpy"])
def test_the_figures_equal_qemus(tmp_path, features, vector, monkeypatch):
    monkeypatch.setattr(check, "_VECTOR_CLUSTERS", 0 if vector else 1 << 40)
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", features, path, "16M")
    rng = random.Random(features)
    writes = [f"write -P 5 {rng.randrange(15 * MIB)} {rng.randrange(1, 200000)}" for _ in range(9)]
    qemu_io(path, *writes)
    if "refcount_bits" not in features:
        qemu_img("snapshot", "-c", "one", path)
        qemu_io(path, "write -P 6 1M 1M", "write -z 3M 1M")
    assert compare_with_oracle(path).corruptions == 0


def test_a_compressed_image_is_counted_as_qemu_does(tmp_path):
    raw, path = tmp_path / "a.raw", tmp_path / "a.qcow2"
    raw.write_bytes(b"".join(bytes([i % 251]) * 5000 for i in range(800)))
    qemu_img("convert", "-c", "-O", "qcow2", raw, path)
    assert compare_with_oracle(path).compressed_clusters > 10


@pytest.mark.parametrize("vector", [False, True], ids=["plain", "numpy"])
@pytest.mark.parametrize(
    "damage", ["leak", "low refcount", "copied lost", "copied wrong", "no block", "past the end"]
)
def test_damage_is_found_as_qemu_finds_it_and_repaired(tmp_path, damage, vector, monkeypatch):
    monkeypatch.setattr(check, "_VECTOR_CLUSTERS", 0 if vector else 1 << 40)
    path, model = tmp_path / "a.qcow2", bytearray(2 * MIB)
    model[:MIB] = random.Random(1).randbytes(MIB)
    create(path, 2 * MIB, cluster_size="4096")
    with open_image(path, writable=True) as image:
        image.pwrite(0, model[:MIB])
        image.flush()
        table = image.volume.mapping.table(0)
        block = image.volume.refcounts.block(0)
        l2, refblock, reftable = table.offset, block.offset, image.header.reftable_offset
        entry = table.words[7]
        end = image.storage.size()
    cluster = (entry & ~COPIED) >> 12
    with path.open("r+b") as file:
        if damage == "leak":
            file.truncate(end + 8 * 4096)
            file.seek(refblock + (end // 4096 + 2) * 2)
            file.write(b"\0\3")
        elif damage == "low refcount":
            file.seek(refblock + cluster * 2)
            file.write(b"\0\0")
        elif damage == "copied lost":
            file.seek(l2 + 7 * 8)
            file.write((entry & ~COPIED).to_bytes(8))
        elif damage == "copied wrong":
            file.seek(refblock + cluster * 2)
            file.write(b"\0\2")
        elif damage == "no block":
            file.seek(reftable)
            file.write(bytes(8))
        else:
            file.seek(l2 + 300 * 8)
            file.write((COPIED | 1 << 40).to_bytes(8))
    found = compare_with_oracle(path) if damage != "no block" else None
    with open_image(path, writable=True, allow_dirty=True) as image:
        result = image.check(repair="all")
    if found:
        assert found.corruptions or found.leaks
    if damage == "past the end":
        assert result.corruptions
        return
    assert not result.corruptions
    assert not result.leaks
    assert result.corruptions_fixed or result.leaks_fixed
    assert_disk(path, model, tmp_path)


def test_repairing_leaks_leaves_corruptions_alone(tmp_path):
    path = create(tmp_path / "a.qcow2", MIB, cluster_size="4096")
    with open_image(path, writable=True) as image:
        image.pwrite(0, bytes(4096) + b"x" * 4096)
        image.flush()
        block = image.volume.refcounts.block(0)
        block.words[100] = 1
        block.words[image.volume.mapping.table(0).words[1] >> 12 & 0xFFFF] = 0
        block.touch(0, 101)
    with open_image(path, writable=True) as image:
        result = image.check(repair="leaks")
    assert result.leaks == 0
    assert result.corruptions == 2


def test_a_dirty_image_is_clean_after_repair(tmp_path):
    path = create(tmp_path / "a.qcow2", MIB)
    with path.open("r+b") as file:
        file.seek(79)
        file.write(b"\3")
    with open_image(path, writable=True, allow_dirty=True) as image:
        image.check(repair="all")
    with open_image(path, writable=True) as image:
        image.pwrite(0, b"data")
    assert_disk(path, b"data" + bytes(MIB - 4), tmp_path)


def test_an_unknown_kind_of_repair_is_refused():
    storage = Memory()
    FORMAT.create(storage, MIB, {})
    with pytest.raises(UsageError):
        FORMAT.open(storage, OpenOptions()).check(repair="everything")
