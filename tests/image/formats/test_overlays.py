"""Commit, rebase and flatten on children in foreign formats."""

import random

import pytest

from tests.image.formats.support import MIB, by_qemu, chain_read, check_by_qemu, made, opened
from wirt.errors import CorruptImage, UnsupportedImage
from wirt.image.commit import commit
from wirt.image.rebase import flatten, rebase

SIZE = 5 * MIB
CASES = {
    "vdi": ("vdi", {}),
    "vpc": ("vpc", {}),
    "vhdx": ("vhdx", {"block_size": str(MIB)}),
    "qed": ("qed", {}),
    "qcow": ("qcow", {}),
    "vmdk": ("vmdk", {}),
    "vmdk-split": ("vmdk", {"subformat": "twoGbMaxExtentSparse"}),
    "vmdk-cowd": ("vmdk", {"subformat": "vmfsSparse"}),
}
CHECKED = {"vdi", "qed", "vmdk"}


def family(case, directory):
    """Return a child with sectors of its own, and what it shows."""
    name, options = CASES[case]
    chance = random.Random(case)
    model = bytearray(chance.randbytes(SIZE - MIB) + bytes(MIB))
    parent = made(directory / f"p.{name}", name, SIZE, **options)
    with opened(parent, name, writable=True) as image:
        image.pwrite(0, model[: SIZE - MIB])
    child = made(directory / f"c.{name}", name, SIZE, backing=parent.name, **options)
    with opened(child, name, writable=True) as image:
        for offset, length in ((700, 9000), (2 * MIB, 512), (SIZE - 3000, 3000)):
            data = chance.randbytes(length)
            image.pwrite(offset, data)
            model[offset : offset + length] = data
        image.write_zeroes(3 * MIB, MIB)
        model[3 * MIB : 4 * MIB] = bytes(MIB)
    return name, parent, child, bytes(model)


def sound(path, name):
    with opened(path, name) as image:
        assert image.check().corruptions == 0
        has_parent = bool(image.info().backing_name)
    # QEMU does not open a VDI that has a parent.
    if name in CHECKED and not (name == "vdi" and has_parent):
        check_by_qemu(path, name, ok=(0, 3))


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("case", CASES)
def test_what_a_child_holds_is_committed(case, tmp_path):
    name, parent, child, model = family(case, tmp_path)
    commit(str(child), format=name)
    assert chain_read(parent, name) == model
    assert chain_read(child, name) == model
    assert by_qemu(parent, name, tmp_path) == model
    with opened(child, name, with_backing=False) as image:
        kinds = {run.kind.value for run in image.extents(0, SIZE)}
        assert kinds == {"hole"}
        assert image.info().backing_name
    sound(parent, name)
    sound(child, name)


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("case", CASES)
def test_a_flattened_child_needs_no_parent(case, tmp_path):
    name, parent, child, model = family(case, tmp_path)
    flatten(str(child), format=name)
    parent.unlink()
    with opened(child, name) as image:
        assert image.info().backing_name == ""
        assert image.pread(0, SIZE) == model
    assert by_qemu(child, name, tmp_path) == model
    sound(child, name)


@pytest.mark.parametrize("case", CASES)
def test_another_parent_changes_nothing_for_the_guest(case, tmp_path):
    name, parent, child, model = family(case, tmp_path)
    other = made(tmp_path / f"a-quite-long-name-of-another-parent.{name}", name, SIZE)
    with opened(other, name, writable=True) as image:
        image.pwrite(MIB, random.Random(3).randbytes(2 * MIB))
    rebase(str(child), other.name, backing_format=name, format=name)
    parent.unlink()
    assert chain_read(child, name) == model
    with opened(child, name) as image:
        assert image.info().backing_name == other.name
    sound(child, name)


@pytest.mark.parametrize("case", ["vdi", "vhdx", "vmdk"])
def test_a_changed_parent_is_accepted_only_when_told_so(case, tmp_path):
    name, parent, child, _ = family(case, tmp_path)
    with opened(parent, name, writable=True) as image:
        image.pwrite(MIB + 9000, b"changed")
    with pytest.raises(CorruptImage, match="changed"):
        opened(child, name)
    rebase(str(child), parent.name, backing_format=name, format=name, unsafe=True)
    with opened(child, name) as image:
        assert image.pread(MIB + 9000, 7) == b"changed"


@pytest.mark.parametrize("case", ["vdi", "vpc", "vhdx", "vmdk"])
def test_a_parent_of_another_format_is_refused(case, tmp_path):
    name, _, child, model = family(case, tmp_path)
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(SIZE))
    with pytest.raises(UnsupportedImage):
        rebase(str(child), "raw", backing_format="raw", format=name, unsafe=True)
    assert chain_read(child, name) == model
