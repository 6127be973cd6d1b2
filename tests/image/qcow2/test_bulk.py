"""The paths of convert: places handed out for the kernel, and compressed clusters."""

import os
import random
import zlib

import pytest

from tests.image.qcow2.support import Memory, assert_disk, create, open_image, qemu_img
from wirt.errors import CorruptImage, OutOfBounds, UnsupportedImage
from wirt.image.base import ExtentKind, OpenOptions
from wirt.image.formats.qcow2 import FORMAT

pytestmark = pytest.mark.needs_qemu_img
MIB = 1 << 20
FEATURES = {
    "v2": {"compat": "0.10"},
    "512": {"cluster_size": "512"},
    "2M": {"cluster_size": "2M"},
    "extended": {"extended_l2": "on"},
    "refcount1": {"refcount_bits": "1", "cluster_size": "512"},
    "data file": {"data_file": "d.raw"},
}


def deflate(data):
    packer = zlib.compressobj(1, wbits=-15)
    return packer.compress(data) + packer.flush()


def text(rng, length):
    words = [rng.randbytes(rng.randrange(3, 9)) for _ in range(40)]
    return b"".join(rng.choice(words) for _ in range(length // 3))[:length]


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
def test_the_kernel_fills_what_is_allocated(tmp_path, features):
    size = 5 * MIB + 1024
    path, model = create(tmp_path / "a.qcow2", size, **features), bytearray(size)
    source = tmp_path / "source"
    data = random.Random(1).randbytes(size)
    source.write_bytes(data)
    step = 2 * MIB
    with open_image(path, writable=True) as image, source.open("rb") as file:
        assert image.can_allocate
        target = image.direct_storage.fileno()
        with image.bulk_write():
            for start in (0, 4 * MIB):
                length = min(step, size - start)
                for guest, place, part in image.allocate(start, length):
                    done = 0
                    while done < part:
                        done += os.copy_file_range(
                            file.fileno(), target, part - done, guest + done, place + done
                        )
                model[start : start + length] = data[start : start + length]
        assert image.pread(0, size) == model
    assert_disk(path, model, tmp_path)


def test_a_whole_new_disk_is_one_extent_per_refcount_block(tmp_path):
    path = create(tmp_path / "a.qcow2", 64 * MIB)
    with open_image(path, writable=True) as image:
        with image.bulk_write():
            assert sum(length for _, _, length in image.allocate(0, 64 * MIB)) == 64 * MIB
        extents = list(image.extents(0, 64 * MIB))
    assert len(extents) == 1
    assert extents[0].kind is ExtentKind.DATA
    qemu_img("check", path)


def test_direct_writes_must_cover_whole_clusters():
    storage = Memory()
    FORMAT.create(storage, MIB, {})
    image = FORMAT.open(storage, OpenOptions(writable=True))
    for offset, length in ((512, 65536), (0, 512)):
        with pytest.raises(OutOfBounds):
            list(image.allocate(offset, length))


@pytest.mark.parametrize("features", list(FEATURES.values())[:5], ids=list(FEATURES)[:5])
def test_compressed_clusters_are_packed_tightly_and_read_by_qemu(tmp_path, features):
    path, rng = tmp_path / "a.qcow2", random.Random(str(features))
    size = 5 * MIB + 512
    model = bytearray(text(rng, size).ljust(size, b"."))
    model[MIB : MIB + 300_000] = rng.randbytes(300_000)
    create(path, size, **features)
    with open_image(path, writable=True) as image:
        unit = image.compression_unit
        with image.bulk_write():
            for offset in range(0, size, unit):
                plain = bytes(model[offset : offset + unit]).ljust(unit, b"\0")
                image.write_compressed(offset, deflate(plain), plain)
        assert image.pread(0, size) == model
        assert any(extent.compressed for extent in image.extents(0, size))
    if "cluster_size" not in features:
        assert path.stat().st_size < size * 0.8
    assert_disk(path, model, tmp_path)
    with open_image(path, writable=True) as image:
        for _ in range(40):
            offset = rng.randrange(size - 40_000)
            data = rng.randbytes(rng.randrange(1, 40_000))
            image.pwrite(offset, data)
            model[offset : offset + len(data)] = data
            unit_start = rng.randrange(size // unit) * unit
            plain = bytes(model[unit_start : unit_start + unit])
            image.write_compressed(unit_start, deflate(plain), plain)
    assert_disk(path, model, tmp_path)


def test_zstd_clusters_are_read_back(tmp_path):
    import zstandard

    path = create(tmp_path / "a.qcow2", MIB, compression_type="zstd")
    model = text(random.Random(4), MIB).ljust(MIB, b"x")
    with open_image(path, writable=True) as image:
        for offset in range(0, MIB, 65536):
            plain = model[offset : offset + 65536]
            image.write_compressed(offset, zstandard.compress(plain), plain)
        assert image.pread(0, MIB) == model
    assert_disk(path, model, tmp_path)


def test_compressed_data_does_not_go_into_a_data_file(tmp_path):
    path = create(tmp_path / "a.qcow2", MIB, data_file="d.raw")
    with open_image(path, writable=True) as image, pytest.raises(UnsupportedImage):
        image.write_compressed(0, b"x", bytes(65536))


@pytest.mark.parametrize("victim", ["header", "l1", "l2", "refcount table", "refcount block"])
def test_a_write_that_would_hit_metadata_is_refused_and_marks_the_image(victim):
    storage = Memory()
    FORMAT.create(storage, MIB, {"cluster_size": "4096"})
    image = FORMAT.open(storage, OpenOptions(writable=True))
    image.pwrite(0, b"x" * 4096)
    image.flush()
    header, table = image.header, image.volume.mapping.table(0)
    places = {
        "header": 0,
        "l1": header.l1_offset,
        "l2": table.offset,
        "refcount table": header.reftable_offset,
        "refcount block": image.volume.refcounts.block(0).offset,
    }
    # The refcounts claim that the victim is free.
    block = image.volume.refcounts.block(0)
    storage.pwrite(block.offset + places[victim] // 4096 * 2, b"\0\0")
    again = FORMAT.open(storage, OpenOptions(writable=True))
    with pytest.raises(CorruptImage, match="overwrite"):
        again.pwrite(8192, b"y" * 4096)
    assert FORMAT.open(storage, OpenOptions()).info().specific["corrupt"]
    with pytest.raises(CorruptImage):
        FORMAT.open(storage, OpenOptions(writable=True))


def test_a_data_cluster_that_points_into_metadata_is_not_written():
    storage = Memory()
    FORMAT.create(storage, MIB, {"cluster_size": "4096"})
    image = FORMAT.open(storage, OpenOptions(writable=True))
    image.pwrite(0, b"x" * 4096)
    image.flush()
    table = image.volume.mapping.table(0)
    storage.pwrite(table.offset, (1 << 63 | table.offset).to_bytes(8))
    again = FORMAT.open(storage, OpenOptions(writable=True))
    with pytest.raises(CorruptImage, match="L2"):
        again.pwrite(0, b"y" * 512)


def test_packing_does_not_go_on_in_a_cluster_that_was_given_away(tmp_path):
    path, unit = create(tmp_path / "a.qcow2", MIB, cluster_size="4096"), 4096
    with open_image(path, writable=True) as image:
        image.write_compressed(0, deflate(b"a" * unit), b"a" * unit)
        image.snapshot_create("s")
        image.write_zeroes(0, unit)
        image.snapshot_delete("s")
        image.pwrite(8 * unit, b"data" * 8192)
        image.write_compressed(unit, deflate(b"b" * unit), b"b" * unit)
        expected = bytearray(MIB)
        expected[unit : 2 * unit] = b"b" * unit
        expected[8 * unit : 16 * unit] = b"data" * 8192
        assert image.pread(0, MIB) == expected
    assert_disk(path, expected, tmp_path)
