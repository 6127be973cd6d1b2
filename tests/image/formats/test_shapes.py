"""Every written format in every allocation shape, read in one piece, by us and by an oracle."""

import random
import subprocess

import pytest

from tests.image.formats.oracles import ORACLES, read_by
from tests.image.formats.support import MIB, chain_read, check_by_qemu, made, opened
from wirt.image.base import Checkable, Resizable
from wirt.image.formats.vmdk import create, resize

BLOCKS = 6
SHAPES = {
    "empty": [],
    "in order": [0, 1, 2, 3, 4, 5],
    "reversed": [5, 4, 3, 2, 1, 0],
    "hole first": [1, 2, 3, 4, 5],
    "hole between": [0, 1, 4, 5],
    "swapped": [0, 2, 1, 3, 5, 4],
}
# Block size, and what the disk is made with.
WRITTEN = {
    "vdi": ("vdi", MIB, {}),
    "vdi-static": ("vdi", MIB, {"static": "on"}),
    "vpc": ("vpc", 2 * MIB, {}),
    "vpc-fixed": ("vpc", 2 * MIB, {"subformat": "fixed"}),
    "vhdx": ("vhdx", MIB, {"block_size": str(MIB)}),
    "vhdx-fixed": ("vhdx", MIB, {"block_size": str(MIB), "subformat": "fixed"}),
    "vhdx-4k": ("vhdx", MIB, {"block_size": str(MIB), "sector_size": "4096"}),
    "qed": ("qed", 65536, {}),
    "qcow": ("qcow", 4096, {}),
    "parallels": ("parallels", MIB, {}),
    "vmdk": ("vmdk", 65536, {}),
    "vmdk-flat": ("vmdk", 65536, {"subformat": "monolithicFlat"}),
    "vmdk-split": ("vmdk", 65536, {"subformat": "twoGbMaxExtentSparse"}),
    "vmdk-split-flat": ("vmdk", 65536, {"subformat": "twoGbMaxExtentFlat"}),
    "vmdk-vmfs": ("vmdk", 65536, {"subformat": "vmfs"}),
    "vmdk-cowd": ("vmdk", 8192, {"subformat": "vmfsSparse"}),
}
CHECKED_BY_QEMU = {"vdi", "qed", "parallels", "vmdk"}
WITH_PARENT = ["vdi", "vpc", "vhdx", "qed", "qcow", "vmdk", "vmdk-split", "vmdk-cowd"]


@pytest.fixture(autouse=True)
def _short_extents(monkeypatch):
    for module in (create, resize):
        monkeypatch.setattr(module, "SPLIT", 3 * 65536)


def assert_as_model(path, name, case, model, *, leaks=False):
    """``leaks``: space inside the file may be left over."""
    assert chain_read(path, name) == model
    for oracle in ORACLES[case]:
        assert read_by(oracle, path) == model, oracle
    with opened(path, name) as image:
        if isinstance(image, Checkable):
            result = image.check()
            assert result.corruptions == 0, result.messages
            assert leaks or result.leaks == 0
    if name in CHECKED_BY_QEMU:
        check_by_qemu(path, name, ok=(0, 3) if leaks else (0,))


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", WRITTEN)
def test_a_shape_is_read_in_one_piece(case, shape, tmp_path):
    name, block, options = WRITTEN[case]
    size = BLOCKS * block
    path = made(tmp_path / f"d.{name}", name, size, **options)
    model, chance = bytearray(size), random.Random(shape)
    with opened(path, name, writable=True) as image:
        for index in SHAPES[shape]:
            data = chance.randbytes(block)
            image.pwrite(index * block, data)
            model[index * block : (index + 1) * block] = data
        assert image.pread(0, size) == model
    assert_as_model(path, name, case, model)


@pytest.mark.parametrize("case", WITH_PARENT)
def test_one_read_goes_across_all_states_of_a_child(case, tmp_path):
    name, block, options = WRITTEN[case]
    size, chance = 8 * block, random.Random(case)
    parent = made(tmp_path / f"p.{name}", name, size, **options)
    model = bytearray(chance.randbytes(size - block) + bytes(block))
    with opened(parent, name, writable=True) as image:
        image.pwrite(0, model[: size - block])
    child = made(tmp_path / f"c.{name}", name, size, backing=parent.name, **options)
    with opened(child, name, writable=True) as image:
        for offset, length in ((5 * block, block), (block + 512, 700), (3 * block - 9, 20)):
            data = chance.randbytes(length)
            image.pwrite(offset, data)
            model[offset : offset + length] = data
        image.write_zeroes(6 * block, block)
        model[6 * block : 7 * block] = bytes(block)
        image.write_zeroes(5 * block + 100, 1000)
        model[5 * block + 100 : 5 * block + 1100] = bytes(1000)
        assert image.pread(0, size) == model
    assert chain_read(child, name) == model
    for oracle in ORACLES[f"{case}-child"]:
        assert read_by(oracle, child, parent) == model, oracle


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("case", [case for case in WRITTEN if case not in {"vdi-static", "qcow"}])
def test_a_disk_grows_and_shrinks(case, tmp_path):
    name, block, options = WRITTEN[case]
    path = made(tmp_path / f"d.{name}", name, 4 * block, **options)
    chance = random.Random(case)
    model = bytearray(chance.randbytes(4 * block))
    with opened(path, name, writable=True) as image:
        assert isinstance(image, Resizable)
        image.pwrite(0, model)
        for size in (2 * block + 4096, 9 * block, block, 5 * block):
            image.resize(size)
            model = model[:size].ljust(size, b"\0")
            assert image.pread(0, size) == model
            image.pwrite(size - 4096, b"end!" * 1024)
            model[size - 4096 :] = b"end!" * 1024
    assert_as_model(path, name, case, model, leaks=True)
    if case != "vhdx-4k":
        commands = [f"write -P 0x51 {3 * block} {block}", f"write -P 0x52 {2 * block + 512} 512"]
        words = [word for command in commands for word in ("-c", command)]
        subprocess.run(["qemu-io", "-f", name, *words, path], check=True, capture_output=True)
        model[3 * block : 4 * block] = b"\x51" * block
        model[2 * block + 512 : 2 * block + 1024] = b"\x52" * 512
        assert_as_model(path, name, case, model, leaks=True)


def test_the_growing_child_hides_a_longer_parent(tmp_path):
    for name in ("vdi", "vpc", "vhdx", "qed", "vmdk"):
        block, options = WRITTEN[name][1:]
        parent = made(tmp_path / f"p.{name}", name, 6 * block, **options)
        below = random.Random(1).randbytes(6 * block)
        with opened(parent, name, writable=True) as image:
            image.pwrite(0, below)
        child = made(tmp_path / f"c.{name}", name, 2 * block, backing=parent.name, **options)
        with opened(child, name, writable=True) as image:
            image.resize(7 * block)
        assert chain_read(child, name) == below[: 2 * block] + bytes(5 * block), name
