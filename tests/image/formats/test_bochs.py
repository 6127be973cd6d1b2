"""Bochs' growing disks, against bximage and qemu-img."""

import subprocess

import pytest

from tests.image.formats.support import (
    MIB,
    by_qemu,
    exercised,
    made,
    mutated,
    sample,
    sample_is_as_qemu_reads_it,
)
from wirt.image.probe import probe_file


@pytest.mark.needs_qemu_img
def test_a_disk_made_by_others_reads_as_in_qemu(tmp_path):
    path = sample("empty.bochs", tmp_path)
    assert probe_file(str(path)) == "bochs"
    sample_is_as_qemu_reads_it(path, "bochs")


@pytest.mark.needs_qemu_img
def test_what_is_written_is_what_qemu_reads(tmp_path):
    path = made(tmp_path / "d.bochs", "bochs", 5 * MIB + 512)
    model = bytearray(5 * MIB + 512)
    exercised(path, "bochs", model, block=MIB)
    assert by_qemu(path, "bochs", tmp_path) == model


@pytest.mark.needs_qemu_img
@pytest.mark.needs_tool("bximage")
def test_a_disk_made_by_bximage_can_be_written(tmp_path):
    path = tmp_path / "b.img"
    subprocess.run(
        ["bximage", "-q", "-func=create", "-hd=10M", "-imgmode=growing", str(path)],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    assert probe_file(str(path)) == "bochs"
    model = bytearray(by_qemu(path, "bochs", tmp_path))
    exercised(path, "bochs", model)
    assert by_qemu(path, "bochs", tmp_path) == model


def test_damaged_disks_raise_nothing_but_image_errors(tmp_path):
    path = made(tmp_path / "m.bochs", "bochs", 2 * MIB)
    exercised(path, "bochs", bytearray(2 * MIB))
    mutated(path, "bochs", tmp_path, head=1024)
