"""VHDX: dynamic, fixed, differencing and dirty, against qemu-img and libvhdi."""

import hashlib
import random
import subprocess

import pytest
import pyvhdi

from tests.image.formats.oracles import by_libvhdi
from tests.image.formats.support import (
    MIB,
    by_qemu,
    chain_read,
    exercised,
    made,
    mutated,
    opened,
    sample,
    sample_is_as_qemu_reads_it,
)
from wirt.errors import CorruptImage, ImageAccessDenied
from wirt.image.formats.vhdx.crc import crc32c
from wirt.image.open import open_image
from wirt.image.probe import probe_file


def test_the_checksum_is_castagnolis():
    assert crc32c(b"123456789") == 0xE3069283


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("name", ["iotest-dynamic-1G.vhdx", "test-disk2vhd.vhdx"])
def test_a_disk_made_by_others_reads_as_in_qemu(name, tmp_path):
    path = sample(name, tmp_path)
    assert probe_file(str(path)) == "vhdx"
    sample_is_as_qemu_reads_it(path, "vhdx")


@pytest.mark.needs_qemu_img
def test_a_dirty_disk_is_read_right_and_left_alone(tmp_path):
    # qemu-img refuses to open it read-only; libvhdi and others return stale data.
    path = sample("iotest-dirtylog-10G-4M.vhdx", tmp_path)
    before = hashlib.sha256(path.read_bytes()).digest()
    replayed = tmp_path / "replayed.vhdx"
    replayed.write_bytes(path.read_bytes())
    subprocess.run(
        ["qemu-img", "check", "-r", "all", str(replayed)], check=True, capture_output=True
    )
    with opened(path) as mine, opened(replayed, "vhdx") as theirs:
        assert mine.info().dirty
        assert not theirs.info().dirty
        for offset in range(0, mine.virtual_size, 256 * MIB):
            kinds = [
                [(run.offset, run.length, run.kind) for run in image.extents(offset, 256 * MIB)]
                for image in (mine, theirs)
            ]
            assert kinds[0] == kinds[1]
            for start, length, kind in kinds[0]:
                if kind.value == "data":
                    assert mine.pread(start, length) == theirs.pread(start, length)
    assert hashlib.sha256(path.read_bytes()).digest() == before


@pytest.mark.needs_qemu_img
def test_a_dirty_disk_is_replayed_before_it_is_written(tmp_path):
    path = sample("iotest-dirtylog-10G-4M.vhdx", tmp_path)
    with opened(path, writable=True) as image:
        image.pwrite(5 * MIB + 7, b"later")
        size = image.virtual_size
    with opened(path) as image:
        assert not image.info().dirty
        assert image.pread(5 * MIB + 7, 5) == b"later"
        assert image.virtual_size == size
    file = pyvhdi.file()
    file.open(str(path))
    assert file.read_buffer_at_offset(5, 5 * MIB + 7) == b"later"
    file.close()


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize(
    "options", [{}, {"subformat": "fixed"}, {"block_size": "1M", "log_size": "3M"}]
)
def test_what_is_written_is_what_everybody_reads(options, tmp_path):
    path = made(tmp_path / "d.vhdx", "vhdx", 13 * MIB + 512, **options)
    model = bytearray(13 * MIB + 512)
    exercised(path, "vhdx", model)
    assert by_qemu(path, "vhdx", tmp_path) == model
    assert by_libvhdi(path) == model


def test_sectors_may_be_4096_bytes_long(tmp_path):
    # QEMU does not open such disks.
    path = made(tmp_path / "4k.vhdx", "vhdx", 6 * MIB, sector_size="4096", block_size=str(MIB))
    model = bytearray(6 * MIB)
    exercised(path, "vhdx", model)
    assert by_libvhdi(path) == model


@pytest.mark.needs_qemu_img
def test_a_disk_made_by_qemu_can_be_written_and_resized(tmp_path):
    path = tmp_path / "q.vhdx"
    subprocess.run(
        ["qemu-img", "create", "-f", "vhdx", str(path), "9M"], check=True, capture_output=True
    )
    model = bytearray(9 * MIB)
    exercised(path, "vhdx", model, seed=3)
    with opened(path, writable=True) as image:
        image.resize(5 * MIB)
        image.resize(30 * MIB)
        image.pwrite(29 * MIB, b"new")
    model[5 * MIB :] = bytes(25 * MIB)
    model[29 * MIB : 29 * MIB + 3] = b"new"
    assert by_qemu(path, "vhdx", tmp_path) == model


def test_a_table_without_room_moves_when_the_disk_grows(tmp_path):
    path = made(tmp_path / "g.vhdx", "vhdx", 8 * MIB, block_size=str(MIB))
    data = random.Random(4).randbytes(3 * MIB)
    with opened(path, writable=True) as image:
        image.pwrite(0, data)
        image.resize(200 << 30)
        image.pwrite((200 << 30) - 512, b"e" * 512)
        image.pwrite(7 * MIB, b"m" * 600)
    with opened(path) as image:
        assert image.pread(0, 3 * MIB) == data
        assert image.pread((200 << 30) - 512, 512) == b"e" * 512
    file = pyvhdi.file()
    file.open(str(path))
    assert file.read_buffer_at_offset(3 * MIB, 0) == data
    assert file.read_buffer_at_offset(512, (200 << 30) - 512) == b"e" * 512
    file.close()


def two(directory, **options):
    below = random.Random(2).randbytes(4 * MIB)
    parent = made(directory / "p.vhdx", "vhdx", 4 * MIB, block_size=str(MIB), **options)
    with opened(parent, writable=True) as image:
        image.pwrite(0, below)
    child = made(directory / "c.vhdx", "vhdx", 0, backing="p.vhdx", block_size=str(MIB))
    return parent, child, bytearray(below)


@pytest.mark.parametrize("sector", ["512", "4096"])
def test_a_differencing_disk_reads_its_parent(sector, tmp_path):
    # qemu-img refuses every differencing VHDX.
    parent, child, model = two(tmp_path, sector_size=sector)
    assert chain_read(child) == model
    exercised(child, "vhdx", model)
    assert by_libvhdi(child, parent) == model


def partial(path, block, bits):
    """Make a block partially present, as Hyper-V leaves it after small writes."""
    with opened(path, writable=True) as image:
        image.pwrite(block * MIB, b"c" * MIB)
        image.flush()
        at = -(-image._next // MIB) * MIB
        image.storage.pwrite(at, bytes(MIB))
        image.storage.pwrite(at + block * MIB // 512 // 8, bits)
        image._table[block] = image._table[block] & ~7 | 7
        image._table[image._ratio] = at | 6
        for slot in (block, image._ratio):
            entry = image._table[slot].to_bytes(8, "little")
            image.storage.pwrite(image._bat_region[0] + 8 * slot, entry)


def test_single_sectors_of_a_block_are_the_parents(tmp_path):
    parent, child, model = two(tmp_path)
    partial(child, 1, b"\x03\xf0" * 128)
    for sector in range(2048):
        if b"\x03\xf0"[sector // 8 % 2] >> sector % 8 & 1:
            model[MIB + 512 * sector : MIB + 512 * sector + 512] = b"c" * 512
    assert chain_read(child) == model
    assert by_libvhdi(child, parent) == model
    exercised(child, "vhdx", model, block=MIB)
    assert by_libvhdi(child, parent) == model


def test_a_changed_or_unasked_parent_is_refused(tmp_path):
    parent, child, _ = two(tmp_path)
    with pytest.raises(ImageAccessDenied):
        open_image(str(child))
    with opened(parent, writable=True) as image:
        image.pwrite(0, b"changed")
    with pytest.raises(CorruptImage, match="changed since"):
        opened(child)


def test_damaged_disks_raise_nothing_but_image_errors(tmp_path):
    _, child, _ = two(tmp_path)
    partial(child, 1, b"\x03\xf0" * 128)
    for seed, low in ((1, 4096), (2, 4 * MIB)):
        mutated(child, "vhdx", tmp_path, count=40, seed=seed, head=low)


def test_a_damaged_log_raises_nothing_but_image_errors(tmp_path):
    path = sample("iotest-dirtylog-10G-4M.vhdx", tmp_path)
    mutated(path, "vhdx", tmp_path, count=20, head=2 * MIB)
