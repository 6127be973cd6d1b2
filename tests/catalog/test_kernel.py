from __future__ import annotations

import gzip
import lzma
import struct

import pytest
import zstandard

from wirt.catalog.kernel import bootable, find_kernel, has_pvh_entry
from wirt.errors import CorruptImage, HostError


def note(name, kind, content=b"\0" * 4):
    return struct.pack("<III", len(name), len(content), kind) + name + content


def elf(notes):
    header = bytearray(64 + 56)
    header[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<Q", header, 32, 64)
    struct.pack_into("<HH", header, 54, 56, 1)
    struct.pack_into("<IIQQQQ", header, 64, 4, 0, 120, 0, 0, len(notes))
    return bytes(header) + notes


def bzimage(payload, *, version=0x20F):
    image = bytearray(3 * 512)
    image[0x1F1] = 2
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, version)
    struct.pack_into("<II", image, 0x248, 16, len(payload))
    return bytes(image) + b"d" * 16 + payload + b"tail"


PVH = elf(note(b"GNU\0", 3) + note(b"Xen\0", 18))
PLAIN = elf(note(b"Xen\0", 17))


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstandard.compress])
def test_a_kernel_with_a_pvh_entry_is_unpacked(pack):
    assert bootable(bzimage(pack(PVH))) == PVH


@pytest.mark.parametrize(
    "image",
    [
        bzimage(gzip.compress(PLAIN)),
        bzimage(b"\x1f\x8bgarbage"),
        bzimage(b"LZ4?"),
        bzimage(gzip.compress(PVH), version=0x207),
        bzimage(b""),
        bzimage(zstandard.compress(PVH)[:20]),
    ],
    ids=["no entry", "damaged", "unknown", "old header", "empty", "cut"],
)
def test_any_other_kernel_is_kept_as_it_is(image):
    assert bootable(image) == image


def test_something_else_is_no_kernel():
    with pytest.raises(CorruptImage, match="not a Linux kernel"):
        bootable(b"#!/bin/sh" * 200)


@pytest.mark.parametrize("cut", range(0, len(PVH), 7))
def test_a_cut_elf_file_is_no_error(cut):
    assert has_pvh_entry(PVH[:cut]) in {True, False}


def test_the_newest_kernel_with_modules_is_chosen(tmp_path):
    for version in ("6.9.0-1", "6.10.0-2", "6.11.0-1"):
        (tmp_path / "boot").mkdir(exist_ok=True)
        (tmp_path / f"boot/vmlinuz-{version}").write_bytes(b"")
        modules = tmp_path / "usr/lib/modules" / version
        modules.mkdir(parents=True)
        if version != "6.11.0-1":
            (modules / "modules.dep").write_text("")
    assert find_kernel(tmp_path)[0].name == "vmlinuz-6.10.0-2"


def test_a_tree_without_kernel_is_said(tmp_path):
    with pytest.raises(HostError, match="no kernel"):
        find_kernel(tmp_path)
