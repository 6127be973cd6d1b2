"""VMDK, against qemu-img and libvmdk."""

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
    sample,
    sample_is_as_qemu_reads_it,
)
from wirt.errors import CorruptImage, ImageAccessDenied, ImageError, UnsupportedImage
from wirt.image.open import open_image
from wirt.image.probe import probe_file

SUBFORMATS = ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"]


@pytest.mark.needs_qemu_img
def test_a_stream_made_by_esxi_reads_as_in_qemu(tmp_path):
    path = sample("iotest-version3.vmdk", tmp_path)
    assert probe_file(str(path)) == "vmdk"
    sample_is_as_qemu_reads_it(path, "vmdk")
    with pytest.raises(UnsupportedImage):
        opened(path, writable=True)


def test_a_file_that_once_crashed_a_reader_is_refused(tmp_path):
    path = sample("afl9.vmdk", tmp_path)
    with pytest.raises(ImageError):
        opened(path, "vmdk")


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_what_is_written_is_what_qemu_reads(subformat, tmp_path):
    path = made(tmp_path / "d.vmdk", "vmdk", 12 * MIB + 512, subformat=subformat)
    model = bytearray(12 * MIB + 512)
    exercised(path, "vmdk", model, block=65536)
    check_by_qemu(path, "vmdk")
    assert by_qemu(path, "vmdk", tmp_path) == model


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("subformat", [*SUBFORMATS, "streamOptimized"])
def test_what_qemu_writes_is_read(subformat, tmp_path):
    data = random.Random(1).randbytes(3 * MIB) + bytes(5 * MIB) + b"text" * (MIB // 4)
    raw, path = tmp_path / "r.raw", tmp_path / "q.vmdk"
    raw.write_bytes(data)
    subprocess.run(
        ["qemu-img", "convert", "-O", "vmdk", "-o", f"subformat={subformat}", raw, path],
        check=True, capture_output=True,
    )  # fmt: skip
    assert chain_read(path) == data


@pytest.mark.needs_qemu_img
def test_an_extent_may_lie_behind_two_gigabytes(tmp_path):
    path = made(tmp_path / "d.vmdk", "vmdk", 5 << 30, subformat="twoGbMaxExtentSparse")
    data = random.Random(1).randbytes(MIB)
    at = (2047 << 20) - MIB // 2
    with opened(path, writable=True) as image:
        image.pwrite(at, data)
    with opened(path) as image:
        assert image.pread(at, MIB) == data
        assert image.virtual_size == 5 << 30
    sample_is_as_qemu_reads_it(path, "vmdk")


@pytest.mark.needs_qemu_img
def test_a_child_reads_its_parent_until_that_changes(tmp_path):
    below = random.Random(2).randbytes(4 * MIB)
    parent = made(tmp_path / "p.vmdk", "vmdk", 4 * MIB)
    with opened(parent, writable=True) as image:
        image.pwrite(0, below)
    child = made(tmp_path / "c.vmdk", "vmdk", 0, backing="p.vmdk")
    model = bytearray(below)
    assert chain_read(child) == model
    exercised(child, "vmdk", model, block=65536)
    assert by_qemu(child, "vmdk", tmp_path) == model
    with pytest.raises(ImageAccessDenied):
        open_image(str(child))
    with opened(parent, writable=True) as image:
        image.pwrite(0, b"changed")
    with pytest.raises(CorruptImage, match="CID"):
        opened(child)


def test_extents_are_not_opened_unasked(tmp_path):
    path = made(tmp_path / "f.vmdk", "vmdk", MIB, subformat="monolithicFlat")
    with pytest.raises(ImageAccessDenied, match="extent"):
        open_image(str(path))


def test_damaged_disks_raise_nothing_but_image_errors(tmp_path):
    path = made(tmp_path / "m.vmdk", "vmdk", 2 * MIB)
    exercised(path, "vmdk", bytearray(2 * MIB), block=65536)
    mutated(path, "vmdk", tmp_path, head=66000)
    mutated(path, "vmdk", tmp_path, head=1200, seed=9)


def test_a_damaged_stream_raises_nothing_but_image_errors(tmp_path):
    mutated(sample("iotest-version3.vmdk", tmp_path), "vmdk", tmp_path, count=60, head=2048)
