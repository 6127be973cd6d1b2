"""Damage in the tables of foreign disks: found, repaired where it can be, clean for QEMU after."""

import subprocess

import pytest

from tests.image.formats.support import MIB, chain_read, check_by_qemu, made, opened
from wirt.errors import CorruptImage

CASES = {
    "vdi": ("vdi", MIB, {}),
    "vpc": ("vpc", 2 * MIB, {}),
    "vhdx": ("vhdx", MIB, {"block_size": str(MIB)}),
    "qed": ("qed", 65536, {}),
    "qcow": ("qcow", 4096, {}),
    "parallels": ("parallels", MIB, {}),
}
CHECKED_BY_QEMU = {"vdi", "qed", "parallels"}


def filled(case, directory):
    name, block, options = CASES[case]
    path = made(directory / f"d.{name}", name, 5 * block, **options)
    model = b"".join(bytes([65 + index]) * block for index in range(4)) + bytes(block)
    with opened(path, name, writable=True) as image:
        image.pwrite(0, model[: 4 * block])
    return name, block, path, model


def repaired(path, name, how="all"):
    with opened(path, name, writable=True, allow_dirty=True) as image:
        return image.check(repair=how)


def assert_clean(path, name, model):
    with opened(path, name) as image:
        result = image.check()
        assert result.corruptions == 0, result.messages
    if name in CHECKED_BY_QEMU:
        check_by_qemu(path, name, ok=(0, 3))
    assert chain_read(path, name) == model


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("case", CASES)
def test_a_block_outside_the_file_is_forgotten(case, tmp_path):
    name, block, path, model = filled(case, tmp_path)
    with opened(path, name, writable=True) as image:
        image._point(1, 1 << 30)
        image._unpublished.add(1)
        image.flush()
    with opened(path, name) as image:
        assert image.check().corruptions == 1
        with pytest.raises(CorruptImage):
            image.pread(block, 1)
    result = repaired(path, name)
    assert (result.corruptions, result.corruptions_fixed) == (0, 1)
    assert_clean(path, name, model[:block] + bytes(block) + model[2 * block :])


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("case", CASES)
def test_blocks_that_share_a_place_are_parted(case, tmp_path):
    name, block, path, model = filled(case, tmp_path)
    with opened(path, name, writable=True) as image:
        image._point(2, image._place_of(0))
        image._unpublished.add(2)
        image.flush()
    assert repaired(path, name, "leaks").corruptions == 1
    result = repaired(path, name)
    assert result.corruptions == 0, result.messages
    with opened(path, name, writable=True) as image:
        image.pwrite(2 * block, b"x" * 512)
    shown = model[: 2 * block] + b"x" * 512 + model[512:block] + model[3 * block :]
    assert_clean(path, name, shown)


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("case", CASES)
def test_space_behind_everything_is_given_back(case, tmp_path):
    name, block, path, model = filled(case, tmp_path)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size + 3 * block)
    with opened(path, name) as image:
        found = image.check()
        # A VHD then misses its footer; its blocks are a sector longer than the room for three.
        leaks = 2 if name == "vpc" else 3
        assert (found.corruptions, found.leaks) == (1 if name == "vpc" else 0, leaks)
    result = repaired(path, name, "all" if name == "vpc" else "leaks")
    assert (result.leaks, result.leaks_fixed) == (0, leaks)
    assert path.stat().st_size == size
    assert_clean(path, name, model)


def test_a_table_outside_the_file_is_forgotten(tmp_path):
    name, block, path, _ = filled("qed", tmp_path)
    with path.open("r+b") as file:
        file.seek(65536)
        file.write((1 << 40).to_bytes(8, "little"))
    with opened(path, name) as image:
        assert image.check().corruptions == 1
        with pytest.raises(CorruptImage):
            image.pread(0, 1)
    assert repaired(path, name).corruptions == 0
    assert_clean(path, name, bytes(5 * block))


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize(("case", "place", "mark"), [("qed", 16, 2), ("parallels", 44, 0x59)])
def test_an_image_that_was_not_closed_is_checked_and_then_written(case, place, mark, tmp_path):
    name, block, path, model = filled(case, tmp_path)
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes([mark]) if name == "qed" else b"Ynot")
    with pytest.raises(CorruptImage, match="not closed"):
        opened(path, name, writable=True)
    with opened(path, name) as image:
        assert image.info().dirty
    assert repaired(path, name).corruptions == 0
    with opened(path, name, writable=True) as image:
        assert not image.info().dirty
        image.pwrite(4 * block, b"later")
    assert_clean(path, name, model[: 4 * block] + b"later".ljust(block, b"\0"))


@pytest.mark.parametrize("name", ["vdi", "vhdx", "vmdk"])
def test_repairing_what_is_whole_leaves_children_their_parent(name, tmp_path):
    parent = made(tmp_path / f"p.{name}", name, 4 * MIB)
    with opened(parent, name, writable=True) as image:
        image.pwrite(0, b"below")
    child = made(tmp_path / f"c.{name}", name, 0, backing=parent.name)
    result = repaired(parent, name)
    assert (result.corruptions, result.leaks) == (0, 0)
    assert chain_read(child, name)[:5] == b"below"


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("name", ["vmdk", "vdi", "vpc", "vhdx", "qed", "parallels"])
def test_nothing_is_wrong_with_what_qemu_wrote(name, tmp_path):
    path = tmp_path / f"d.{name}"
    subprocess.run(["qemu-img", "create", "-q", "-f", name, path, "1G"], check=True, timeout=600)
    for place in ("100M 3M", "500M 64k", "3M 5M", "900M 30M"):
        command = ["qemu-io", "-f", name, "-c", f"write -P 7 {place}", path]
        subprocess.run(command, check=True, capture_output=True, timeout=600)
    with opened(path, name) as image:
        result = image.check()
    assert (result.corruptions, result.leaks) == (0, 0), result.messages
