"""VHD: fixed, dynamic and differencing, against qemu-img where it is right and libvhdi."""

import random
import subprocess

import pytest
import pyvhdi

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
from wirt.errors import CorruptImage, ImageAccessDenied, NotThisFormat
from wirt.image.open import open_image
from wirt.image.probe import probe_file


def by_libvhdi(path, *parents):
    files = []
    for name in (path, *parents):
        file = pyvhdi.file()
        file.open(str(name))
        if files:
            files[-1].set_parent(file)
        files.append(file)
    data = files[0].read_buffer_at_offset(files[0].get_media_size(), 0)
    for file in files:
        file.close()
    return data


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize(
    "name", ["hyperv2012r2-dynamic.vhd", "virtualpc-dynamic.vhd", "d2v-zerofilled.vhd"]
)
def test_a_disk_made_by_others_reads_as_in_qemu(name, tmp_path):
    path = sample(name, tmp_path)
    assert probe_file(str(path)) == "vpc"
    sample_is_as_qemu_reads_it(path, "vpc")


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
@pytest.mark.parametrize("size", [12 * MIB, 7 * MIB + 512])
def test_what_is_written_is_what_everybody_reads(subformat, size, tmp_path):
    path = made(tmp_path / "d.vhd", "vpc", size, subformat=subformat)
    model = bytearray(size)
    exercised(path, "vpc", model)
    assert by_qemu(path, "vpc", tmp_path) == model
    assert by_libvhdi(path) == model


@pytest.mark.needs_qemu_img
def test_a_disk_made_by_qemu_can_be_written(tmp_path):
    path = tmp_path / "q.vhd"
    command = ["qemu-img", "create", "-f", "vpc", "-o", "force_size=on", str(path), "9M"]
    subprocess.run(command, check=True, capture_output=True)
    model = bytearray(9 * MIB)
    exercised(path, "vpc", model, seed=3)
    assert by_qemu(path, "vpc", tmp_path) == model


def chain(directory, length=3):
    """A chain of differencing disks, every one with single sectors of its own."""
    chance = random.Random(5)
    model = bytearray(6 * MIB)
    paths = [made(directory / "0.vhd", "vpc", len(model))]
    exercised(paths[0], "vpc", model)
    for number in range(1, length):
        path = made(directory / f"{number}.vhd", "vpc", 0, backing=f"{number - 1}.vhd")
        with opened(path, writable=True) as image:
            for _ in range(4):
                offset = chance.randrange(len(model) // 512) * 512
                data = chance.randbytes(512)
                image.pwrite(offset, data)
                model[offset : offset + 512] = data
        paths.insert(0, path)
    return paths, model


def sparse_bitmap(path, block, pattern):
    """Clear bits of an allocated block, as Hyper-V leaves them."""
    data = bytearray(path.read_bytes())
    table = int.from_bytes(data[512 + 16 : 512 + 24])
    at = int.from_bytes(data[table + 4 * block : table + 4 * block + 4]) * 512
    data[at : at + 512] = pattern * (512 // len(pattern))
    path.write_bytes(data)


def test_a_differencing_chain_reads_through_its_bitmaps(tmp_path):
    paths, model = chain(tmp_path)
    assert chain_read(paths[0]) == model
    assert by_libvhdi(*paths) == model


# libvhdi looks at whole bytes of the bitmap only: it is no oracle for single sectors.
@pytest.mark.parametrize(("pattern", "run"), [(b"\xaa", 1), (b"\xff\x00", 8)])
def test_single_sectors_of_a_block_are_the_parents(pattern, run, tmp_path):
    # qemu-img returns the child's bytes (zeros) for every one of them, with exit code 0.
    parent = made(tmp_path / "p.vhd", "vpc", 4 * MIB)
    child_model = random.Random(1).randbytes(2 * MIB)
    below = random.Random(2).randbytes(4 * MIB)
    with opened(parent, writable=True) as image:
        image.pwrite(0, below)
    child = made(tmp_path / "c.vhd", "vpc", 0, backing="p.vhd")
    with opened(child, writable=True) as image:
        image.pwrite(0, child_model)
    sparse_bitmap(child, 0, pattern)
    right = bytearray(below)
    for sector in range(0, 4096, 2 * run):
        at, length = 512 * sector, 512 * run
        right[at : at + length] = child_model[at : at + length]
    assert chain_read(child) == right
    if run == 8:
        assert by_libvhdi(child, parent) == right
    with opened(child, writable=True) as image:
        image.pwrite(700, b"x" * 900)
        right[700:1600] = b"x" * 900
        assert image.pread(0, len(right)) == right
    assert chain_read(child) == right
    assert by_libvhdi(child, parent) == right


def test_a_parent_is_not_opened_unasked(tmp_path):
    paths, _ = chain(tmp_path, 2)
    with pytest.raises(ImageAccessDenied):
        open_image(str(paths[0]))


def test_a_parent_with_another_id_is_refused(tmp_path):
    paths, _ = chain(tmp_path, 2)
    made(paths[1], "vpc", 6 * MIB)
    with pytest.raises(CorruptImage, match="made from"):
        opened(paths[0])


def test_a_fixed_disk_is_found_by_its_footer(tmp_path):
    path = made(tmp_path / "f.vhd", "vpc", 3 * MIB + 512, azure="on")
    assert path.stat().st_size == 4 * MIB + 512
    assert probe_file(str(path)) == "vpc"
    with open_image(str(path)) as image:
        assert image.virtual_size == 4 * MIB


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("megabytes", [1, 3, 17, 504, 2047, 8192, 33000, 130000, 600000])
def test_the_geometry_is_that_of_the_specification(megabytes, tmp_path):
    # qemu-img rounds up until the geometry fits, so its own sizes are fixed points.
    path = tmp_path / "g.vhd"
    command = ["qemu-img", "create", "-f", "vpc", str(path), f"{megabytes}M"]
    subprocess.run(command, check=True, capture_output=True)
    done = subprocess.run(
        ["qemu-img", "info", "--output=json", str(path)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    with open_image(str(path)) as image:
        assert f'"virtual-size": {image.virtual_size},' in done.stdout


def test_a_torn_footer_is_replaced_by_its_copy(tmp_path):
    path = made(tmp_path / "t.vhd", "vpc", 4 * MIB)
    with path.open("r+b") as file:
        file.seek(-512, 2)
        file.write(bytes(512))
    with open_image(str(path)) as image:
        assert image.virtual_size == 4 * MIB
    path.write_bytes(bytes(2048))
    with pytest.raises(NotThisFormat):
        open_image(str(path), format="vpc")


def test_damaged_disks_raise_nothing_but_image_errors(tmp_path):
    paths, _ = chain(tmp_path, 2)
    mutated(paths[0], "vpc", tmp_path)
    mutated(paths[1], "vpc", tmp_path)
