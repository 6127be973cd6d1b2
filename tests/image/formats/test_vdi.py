"""VDI. The oracle is qemu-img; no sample made by VirtualBox is at hand."""

import random
import subprocess

import pytest

from tests.image.formats.support import (
    MIB,
    by_qemu,
    chain_read,
    check_by_qemu,
    exercised,
    made,
    mutated,
    opened,
)
from wirt.errors import CorruptImage, ImageAccessDenied
from wirt.image.open import open_image


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("static", ["on", "off"])
def test_what_is_written_is_what_qemu_reads(static, tmp_path):
    path = made(tmp_path / "d.vdi", "vdi", 9 * MIB + 512, static=static)
    model = bytearray(9 * MIB + 512)
    exercised(path, "vdi", model, block=MIB)
    check_by_qemu(path, "vdi")
    assert by_qemu(path, "vdi", tmp_path) == model


@pytest.mark.needs_qemu_img
def test_a_disk_made_by_qemu_can_be_written_and_resized(tmp_path):
    path = tmp_path / "q.vdi"
    subprocess.run(
        ["qemu-img", "create", "-f", "vdi", str(path), "9M"], check=True, capture_output=True
    )
    model = bytearray(9 * MIB)
    exercised(path, "vdi", model, seed=3, block=MIB)
    with opened(path, writable=True) as image:
        image.resize(5 * MIB + 512)
        image.resize(12 * MIB)
    model[5 * MIB + 512 :] = bytes(7 * MIB - 512)
    check_by_qemu(path, "vdi")
    assert by_qemu(path, "vdi", tmp_path) == model


@pytest.mark.needs_qemu_img
def test_blocks_move_when_the_map_needs_their_place(tmp_path):
    path = made(tmp_path / "g.vdi", "vdi", 8 * MIB)
    data = random.Random(1).randbytes(8 * MIB)
    with opened(path, writable=True) as image:
        image.pwrite(0, data)
        image.resize(600 << 30)
        image.pwrite((600 << 30) - 512, b"e" * 512)
    with opened(path) as image:
        assert image.pread(0, 8 * MIB) == data
        assert image.pread((600 << 30) - 512, 512) == b"e" * 512
    check_by_qemu(path, "vdi")


def test_a_differencing_disk_reads_its_parent(tmp_path):
    # qemu-img has no differencing VDI; the model is the oracle.
    below = random.Random(2).randbytes(4 * MIB)
    parent = made(tmp_path / "p.vdi", "vdi", 4 * MIB)
    with opened(parent, writable=True) as image:
        image.pwrite(0, below)
    child = made(tmp_path / "c.vdi", "vdi", 0, backing="p.vdi")
    assert chain_read(child) == below
    model = bytearray(below)
    exercised(child, "vdi", model, block=MIB)
    with pytest.raises(ImageAccessDenied):
        open_image(str(child))
    with opened(parent, writable=True) as image:
        image.pwrite(0, b"changed")
    with pytest.raises(CorruptImage, match="changed after"):
        opened(child)


def test_damaged_disks_raise_nothing_but_image_errors(tmp_path):
    path = made(tmp_path / "m.vdi", "vdi", 4 * MIB)
    exercised(path, "vdi", bytearray(4 * MIB), block=MIB)
    mutated(path, "vdi", tmp_path, head=1024)
