"""cloop, against create_compressed_fs and qemu-img."""

import random
import subprocess

import pytest

from tests.image.formats.support import (
    MIB,
    chain_read,
    mutated,
    opened,
    sample,
    sample_is_as_qemu_reads_it,
)
from wirt.image.probe import probe_file


@pytest.mark.needs_qemu_img
def test_a_disk_made_by_others_reads_as_in_qemu(tmp_path):
    path = sample("simple-pattern.cloop", tmp_path)
    assert probe_file(str(path)) == "cloop"
    sample_is_as_qemu_reads_it(path, "cloop")


def packed(directory):
    raw = directory / "r.raw"
    data = random.Random(1).randbytes(MIB // 2) * 2 + bytes(MIB) + b"text" * (MIB // 4)
    raw.write_bytes(data)
    path = directory / "r.cloop"
    subprocess.run(
        ["create_compressed_fs", "-B", "65536", str(raw), str(path)],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return path, data


@pytest.mark.needs_tool("create_compressed_fs")
def test_what_create_compressed_fs_packs_is_unpacked(tmp_path):
    path, data = packed(tmp_path)
    assert chain_read(path) == data
    chance = random.Random(2)
    with opened(path) as image:
        for _ in range(200):
            offset = chance.randrange(len(data))
            length = chance.randrange(min(200000, len(data) - offset))
            assert image.pread(offset, length) == data[offset : offset + length]


@pytest.mark.needs_tool("create_compressed_fs")
def test_damaged_disks_raise_nothing_but_image_errors(tmp_path):
    path, _ = packed(tmp_path)
    mutated(path, "cloop", tmp_path, head=600)
