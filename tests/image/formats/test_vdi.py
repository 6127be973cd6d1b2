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


@pytest.mark.needs_qemu_img
def test_a_shorter_disk_has_no_gaps_for_qemu_to_stumble_over(tmp_path):
    # QEMU and VirtualBox put a new block behind as many as the header counts.
    path = made(tmp_path / "s.vdi", "vdi", 6 * MIB)
    chance, model = random.Random(1), bytearray(6 * MIB)
    with opened(path, writable=True) as image:
        for index in (5, 4, 0, 3, 1):
            data = chance.randbytes(MIB)
            image.pwrite(index * MIB, data)
            model[index * MIB : (index + 1) * MIB] = data
        image.resize(3 * MIB)
    check_by_qemu(path, "vdi")
    write = ["qemu-io", "-f", "vdi", "-c", f"write -P 7 {2 * MIB} {MIB}", str(path)]
    subprocess.run(write, check=True, capture_output=True)
    model = model[: 2 * MIB] + b"\7" * MIB
    check_by_qemu(path, "vdi")
    assert by_qemu(path, "vdi", tmp_path) == model
    assert chain_read(path) == model


def test_a_wrong_count_is_found_and_put_right(tmp_path):
    path = made(tmp_path / "c.vdi", "vdi", 4 * MIB)
    with opened(path, writable=True) as image:
        image.pwrite(0, b"a" * (3 * MIB))
    with path.open("r+b") as file:
        file.seek(512 + 4)
        file.write(b"\xff" * 4)
    with opened(path) as image:
        assert image.check().corruptions == 1
    with opened(path, writable=True, allow_dirty=True) as image:
        result = image.check(repair="all")
        assert (result.corruptions, result.corruptions_fixed) == (0, 1)
    check_by_qemu(path, "vdi")
    assert chain_read(path) == b"a" * MIB + bytes(MIB) + b"a" * MIB + bytes(MIB)
