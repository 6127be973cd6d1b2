"""Bochs' disks, against bximage, and the growing ones against qemu-img too."""

import os
import random
import shutil
import struct
import subprocess

import pytest

from tests.image.formats.support import (
    MIB,
    by_qemu,
    chain_read,
    exercised,
    made,
    mutated,
    opened,
    read_all,
    sample,
    sample_is_as_qemu_reads_it,
)
from wirt.errors import CorruptImage, ImageAccessDenied, UnsupportedImage, UsageError
from wirt.image.base import ExtentKind
from wirt.image.commit import commit
from wirt.image.create import create_image
from wirt.image.open import open_image
from wirt.image.probe import probe_file
from wirt.image.rebase import rebase


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
        check=True, capture_output=True, timeout=600,
    )  # fmt: skip
    assert probe_file(str(path)) == "bochs"
    model = bytearray(by_qemu(path, "bochs", tmp_path))
    exercised(path, "bochs", model)
    assert by_qemu(path, "bochs", tmp_path) == model


def test_damaged_disks_raise_nothing_but_image_errors(tmp_path):
    path = made(tmp_path / "m.bochs", "bochs", 2 * MIB)
    exercised(path, "bochs", bytearray(2 * MIB))
    mutated(path, "bochs", tmp_path, head=1024)


SIZE = 4 * MIB
EXTENT = 4096
SHAPES = {
    "empty": [],
    "in order": list(range(20)),
    "reversed": list(range(19, -1, -1)),
    "hole first": [7, 3, 9],
    "hole between": [0, 1, 18, 19],
    "swapped": [1, 0, 2, 4, 3],
}


def bximage(*words):
    done = subprocess.run(
        ["bximage", "-q", *map(str, words)], check=True, capture_output=True, timeout=600
    )
    assert b"Done" in done.stdout


def as_bximage_reads(path):
    out = path.with_name(path.name + ".flat")
    out.unlink(missing_ok=True)
    bximage("-func=convert", "-imgmode=flat", path, out)
    data = out.read_bytes()
    out.unlink()
    return data


def redolog(path, data, extents, *, mode=b"Undoable", every=1, when=0):
    """A redolog whose extents lie in this order; of each every so many sectors are its own."""
    count = len(data) // EXTENT
    catalog = [0xFFFFFFFF] * count
    body = b""
    for number, extent in enumerate(extents):
        catalog[extent] = number
        bits = bytearray(512)
        for sector in range(0, 8, every):
            bits[sector // 8] |= 1 << sector % 8
        body += bits + data[extent * EXTENT : (extent + 1) * EXTENT]
    head = struct.pack(
        "<32s16s16sIIIIIIQ", b"Bochs Virtual HD Image", b"Redolog", mode, 0x20000, 512, count, 1,
        EXTENT, when, len(data),
    )  # fmt: skip
    path.write_bytes(head.ljust(512, b"\0") + struct.pack(f"<{count}I", *catalog) + body)
    return path


@pytest.mark.parametrize("every", [1, 3], ids=["whole extents", "single sectors"])
@pytest.mark.parametrize("mode", [b"Undoable", b"Volatile"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_redolog_shows_its_base_disk_where_nothing_was_written(shape, mode, every, tmp_path):
    below = random.Random(1).randbytes(20 * EXTENT)
    data = random.Random(2).randbytes(20 * EXTENT)
    base = tmp_path / "c.img"
    base.write_bytes(below)
    name = "c.img.redolog" if mode == b"Undoable" else "c.img.aXb3Zq"
    path = redolog(tmp_path / name, data, SHAPES[shape], mode=mode, every=every)
    model = bytearray(below)
    for extent in SHAPES[shape]:
        for sector in range(0, 8, every):
            at = extent * EXTENT + sector * 512
            model[at : at + 512] = data[at : at + 512]
    assert probe_file(str(path)) == "bochs"
    assert chain_read(path) == model
    exercised(path, "bochs", model, block=EXTENT)
    assert base.read_bytes() == below
    with pytest.raises(ImageAccessDenied):
        open_image(str(path))


@pytest.mark.needs_tool("bximage")
@pytest.mark.parametrize("mode", ["flat", "growing", "sparse"])
def test_commit_gives_the_base_disk_what_bximage_gives_it(mode, tmp_path):
    flat = tmp_path / "flat.img"
    flat.write_bytes(random.Random(3).randbytes(MIB // 2) + bytes(MIB // 2))
    base = tmp_path / "c.img"
    if mode == "flat":
        shutil.copy(flat, base)
    else:
        bximage("-func=convert", f"-imgmode={mode}", flat, base)
    model = bytearray(flat.read_bytes())
    path = tmp_path / "c.img.redolog"
    create_image(str(path), "bochs", 0, backing="c.img")
    assert chain_read(path) == model
    exercised(path, "bochs", model, block=EXTENT)
    for name in ("c.img", "c.img.redolog"):
        (tmp_path / "twin").mkdir(exist_ok=True)
        shutil.copy2(tmp_path / name, tmp_path / "twin" / name)
    bximage("-func=commit", tmp_path / "twin" / "c.img", tmp_path / "twin" / "c.img.redolog")
    assert commit(str(path)) == str(base)
    assert chain_read(base, "raw" if mode == "flat" else "bochs") == model
    assert chain_read(tmp_path / "twin" / "c.img", "raw" if mode == "flat" else "bochs") == model
    with opened(path) as image:
        assert [run.kind for run in image.extents(0, image.virtual_size)] == [ExtentKind.HOLE]
        assert read_all(image) == model
    exercised(path, "bochs", model, seed=5, block=EXTENT)


def test_a_redolog_of_another_or_a_changed_base_disk_is_refused(tmp_path):
    base = tmp_path / "c.img"
    base.write_bytes(bytes(MIB))
    os.utime(base, (1_700_000_000, 1_700_000_000))
    path = tmp_path / "c.img.redolog"
    create_image(str(path), "bochs", 0, backing="c.img")
    os.utime(base, (1_700_000_000 + 7200, 1_700_000_000 + 7200))  # as in another time zone
    assert chain_read(path) == bytes(MIB)
    os.utime(base, (1_700_000_400, 1_700_000_400))
    with pytest.raises(CorruptImage, match="changed after"):
        opened(path)
    base.write_bytes(bytes(MIB + 512))
    with pytest.raises(CorruptImage, match="bytes"):
        opened(path)
    with pytest.raises(UnsupportedImage, match="does not name"):
        rebase(str(path), "other", backing_format="raw", unsafe=True)
    for name, options, words in (
        ("d.redolog", {"backing_file": "c.img"}, "by its name"),
        ("x", {"subformat": "undoable"}, "Invalid parameter"),
        ("x", {"subformat": "growing", "backing_file": "c.img"}, "Invalid parameter"),
    ):
        with pytest.raises(UsageError, match=words):
            made(tmp_path / name, "bochs", 0, **options)
    lost = tmp_path / "lost"
    shutil.copy(path, lost)
    with pytest.raises(CorruptImage, match="does not tell"):
        opened(lost)


def test_a_base_disk_is_not_probed_but_for_bochs(tmp_path):
    made(tmp_path / "inside.qcow2", "qcow2", MIB)
    raw = (tmp_path / "inside.qcow2").read_bytes().ljust(MIB, b"\0")[:MIB]
    base = tmp_path / "c.img"
    base.write_bytes(raw)  # a guest wrote the header of a qcow2 image into its flat disk
    path = tmp_path / "c.img.redolog"
    create_image(str(path), "bochs", 0, backing="c.img")
    assert chain_read(path) == raw


@pytest.mark.needs_tool("bximage")
def test_a_sparse_disk_of_bximage_is_read_and_written(tmp_path):
    flat = tmp_path / "flat.img"
    data = bytearray(random.Random(6).randbytes(SIZE))
    data[MIB : 2 * MIB] = bytes(MIB)
    flat.write_bytes(data)
    path = tmp_path / "s.img"
    bximage("-func=convert", "-imgmode=sparse", flat, path)
    assert probe_file(str(path)) == "bochs"
    assert chain_read(path) == data
    exercised(path, "bochs", data, block=32768)
    assert as_bximage_reads(path) == data


@pytest.mark.needs_tool("bximage")
def test_bximage_reads_a_sparse_disk_that_is_made_and_its_children(tmp_path):
    path = made(tmp_path / "d0", "bochs", SIZE, subformat="sparse")
    model = bytearray(SIZE)
    exercised(path, "bochs", model, block=32768)
    assert as_bximage_reads(path) == model
    child = made(tmp_path / "d1", "bochs", SIZE, subformat="sparse")
    assert chain_read(child) == model
    below = path.read_bytes()
    exercised(child, "bochs", model, seed=4, block=32768)
    assert as_bximage_reads(child) == model
    assert path.read_bytes() == below
    with pytest.raises(ImageAccessDenied):
        open_image(str(child))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_pages_of_a_sparse_disk_lie_in_any_order(shape, version, tmp_path):
    data = random.Random(7).randbytes(20 * EXTENT)
    table = [0xFFFFFFFF] * 20
    model, body = bytearray(len(data)), b""
    for number, page in enumerate(SHAPES[shape]):
        table[page] = number
        part = data[page * EXTENT : (page + 1) * EXTENT]
        body += part
        model[page * EXTENT : (page + 1) * EXTENT] = part
    size = 0 if version == 1 else len(data)
    head = struct.pack("<4sIIIQ", b"\xce\x8a\x46\x02", version, EXTENT, 20, size).ljust(256, b"\0")
    path = tmp_path / "s.img"
    path.write_bytes((head + struct.pack("<20I", *table)).ljust(EXTENT, b"\0") + body)
    assert chain_read(path) == model
    exercised(path, "bochs", model, block=EXTENT)


@pytest.mark.needs_tool("bximage")
def test_a_disk_in_several_files_is_one_disk(tmp_path):
    parts = [random.Random(n).randbytes(size) for n, size in enumerate((5120, 512, 9216))]
    for number, part in enumerate(parts, start=1):
        (tmp_path / f"c.img{number}").write_bytes(part)
    (tmp_path / "c.img5").write_bytes(b"not one of them")
    path = tmp_path / "c.img1"
    model = bytearray(b"".join(parts))
    with opened(path, "bochs-concat", writable=True) as image:
        assert read_all(image) == model
        image.pwrite(5000, b"over all three".ljust(2000, b"!"))
        image.write_zeroes(9000, 3000)
        model[5000:7000] = b"over all three".ljust(2000, b"!")
        model[9000:12000] = bytes(3000)
        assert read_all(image) == model
        assert image.info().specific["files"] == 3
    assert b"".join((tmp_path / f"c.img{n}").read_bytes() for n in (1, 2, 3)) == model
    assert probe_file(str(path)) == "raw"
    with pytest.raises(ImageAccessDenied):
        open_image(str(path), format="bochs-concat")
    (tmp_path / "c.img4").write_bytes(b"odd")
    with pytest.raises(CorruptImage, match="whole sectors"):
        opened(path, "bochs-concat")


def test_damaged_redologs_and_sparse_disks_raise_nothing_but_image_errors(tmp_path):
    for name in ("c.img", "victim-c.img"):
        (tmp_path / name).write_bytes(bytes(20 * EXTENT))
    path = redolog(tmp_path / "c.img.redolog", bytes(20 * EXTENT), SHAPES["reversed"], every=2)
    mutated(path, "bochs", tmp_path, count=60, head=1200)
    sparse = made(tmp_path / "s", "bochs", MIB, subformat="sparse")
    exercised(sparse, "bochs", bytearray(MIB), block=32768)
    mutated(sparse, "bochs", tmp_path, count=60, head=400)
