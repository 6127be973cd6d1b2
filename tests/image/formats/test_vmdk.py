"""VMDK, against qemu-img and libvmdk."""

import random
import struct
import subprocess
import zlib
from contextlib import suppress

import pytest

from tests.image.formats.oracles import by_libvmdk, read_by
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
from wirt.image.convert import ConvertSettings, convert
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


def streamed(directory, *, adapter="lsilogic"):
    """Convert a disk into a stream; return both."""
    raw, path = directory / "r.raw", directory / "s.vmdk"
    text = b"".join(b"%d\n" % number for number in range(300_000))[:MIB]
    data = random.Random(1).randbytes(2 * MIB) + bytes(40 * MIB) + text + bytes(MIB - 512)
    raw.write_bytes(data)
    settings = ConvertSettings(options={"subformat": "streamOptimized", "adapter_type": adapter})
    with opened(raw, "raw") as source:
        convert([source], str(path), "vmdk", settings)
    return path, data


@pytest.mark.needs_qemu_img
def test_a_stream_is_what_everybody_reads(tmp_path):
    path, data = streamed(tmp_path)
    assert chain_read(path) == data
    assert by_qemu(path, "vmdk", tmp_path) == data
    assert by_libvmdk(path) == data
    check_by_qemu(path, "vmdk")
    assert path.stat().st_size < 3 * MIB
    with opened(path) as image:
        assert image.check().corruptions == 0
        assert image.info().specific["create-type"] == "streamOptimized"
    with pytest.raises(UnsupportedImage, match="once"):
        opened(path, writable=True)


def sectors_of(path):
    data = path.read_bytes()
    assert len(data) % 512 == 0
    return data


def test_a_stream_is_laid_out_as_esxi_reads_it_front_to_back(tmp_path):
    """As ESXi's importer does: follow the markers, never seek."""
    path, _ = streamed(tmp_path)
    data = sectors_of(path)
    header = struct.unpack_from("<4sIIQQQQIQQQB4sH", data)
    assert header[1:5] == (3, 0x30001, len(chain_read(path)) // 512, 128)
    assert header[9] == 0xFFFFFFFFFFFFFFFF
    at, seen, tables, grains = header[10] * 512, [], {}, {}
    while True:
        value, size, kind = struct.unpack_from("<QII", data, at)
        if size:
            assert value % 128 == 0
            assert value not in grains
            assert len(zlib.decompress(data[at + 12 : at + 12 + size])) == 65536
            grains[value] = at // 512
            at += -(-(12 + size) // 512) * 512
            continue
        at += 512
        seen.append(kind)
        if kind == 0:
            break
        if kind == 1:
            tables[at // 512] = struct.unpack_from("<512I", data, at)
        if kind == 2:
            directory, where = struct.unpack_from(f"<{value * 128}I", data, at), at // 512
        if kind == 3:
            footer = struct.unpack_from("<4sIIQQQQIQQQB4sH", data, at)
        at += value * 512
    assert at == len(data)
    assert seen == [1, 1, 2, 3, 0]
    assert footer[9] == where
    assert footer[:9] == header[:9]
    named = [sector for table in tables.values() for sector in table if sector]
    assert sorted(named) == sorted(grains.values())
    assert [sector for sector in directory if sector] == sorted(tables)


def test_a_stream_is_written_front_to_back(tmp_path):
    path = made(tmp_path / "s.vmdk", "vmdk", 4 * MIB, subformat="streamOptimized")
    with pytest.raises(CorruptImage, match="not written to its end"):
        opened(path)
    with opened(path, writable=True) as image:
        image.pwrite(MIB, b"x" * 65536)
        image.flush()
        image.pwrite(2 * MIB, b"y" * 65536)
        assert image.pread(2 * MIB - 2, 4) == b"\0\0yy"
        with pytest.raises(UnsupportedImage, match="front to back"):
            image.pwrite(0, b"z" * 65536)
        with pytest.raises(UnsupportedImage, match="whole grains"):
            image.pwrite(3 * MIB, b"z")
    with opened(path) as image:
        assert image.pread(MIB, 65536) == b"x" * 65536
        assert image.pread(2 * MIB, 65536) == b"y" * 65536


def se_sparse(path, grains, capacity):
    """Write a SESPARSE extent; ``grains`` maps the grain's number to bytes or an entry's kind."""
    tables, data, where = {}, b"", 0
    for number, content in grains.items():
        table = tables.setdefault(number // 4096, [0] * 4096)
        if isinstance(content, int):
            table[number % 4096] = content << 60
            continue
        table[number % 4096] = 3 << 60 | (where & 0xFFF) << 48 | where >> 12
        data += content
        where += 1
    count = -(-capacity // (4096 * 8))
    directory = [0] * count
    for place, number in enumerate(sorted(tables, reverse=True)):
        directory[number] = 1 << 60 | place
    tables_at, sectors = 8 + 64, 64 * len(tables)
    fields = [0xCAFEBABE, 0x200000001, capacity, 8, 64, 0, 0, 0, 0, 0, 1, 1, 2, 1, 3, 1]
    fields += [8, 64, tables_at, sectors, 4, 1, 5, 1, tables_at + sectors, len(data) // 512]
    raw = struct.pack("<26Q", *fields).ljust(512, b"\0") + struct.pack("<Q", 0xCAFECAFE)
    raw = raw.ljust(8 * 512, b"\0") + struct.pack(f"<{count}Q", *directory)
    raw = raw.ljust(tables_at * 512, b"\0")
    for number in sorted(tables, reverse=True):
        raw += struct.pack("<4096Q", *tables[number])
    path.write_bytes(raw + data)


def described(path, kind, *lines, parent=""):
    hint = f'parentFileNameHint="{parent}"\n' if parent else ""
    text = "\n".join(lines)
    path.write_text(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n"
        f'createType="{kind}"\n{hint}\n# Extent description\n{text}\n',
        encoding="utf-8",
    )
    return path


@pytest.mark.needs_qemu_img
def test_a_sesparse_snapshot_is_read(tmp_path):
    # No sample made by ESXi is at hand; two readers that others wrote agree on ours.
    chance = random.Random(1)
    capacity = 3 * 4096 * 8
    grains = {number: chance.randbytes(4096) for number in (9, 3, 4, 4095, 4096, 9000, 9001)}
    model = bytearray(capacity * 512)
    for number, content in grains.items():
        model[number * 4096 : number * 4096 + 4096] = content
    se_sparse(tmp_path / "d-sesparse.vmdk", grains | {10: 1, 11: 2}, capacity)
    line = f'RW {capacity} SESPARSE "d-sesparse.vmdk"'
    path = described(tmp_path / "d.vmdk", "seSparse", line)
    with opened(path) as image:
        kinds = [run.kind.value for run in image.extents(8 * 4096, 5 * 4096)]
        assert kinds == ["hole", "data", "zero", "hole"]
        assert image.pread(0, len(model)) == model
    assert by_qemu(path, "vmdk", tmp_path) == model
    assert read_by("dissect", path) == model
    with pytest.raises(UnsupportedImage, match="only be read"):
        opened(path, writable=True)
    mutated(path, "vmdk", tmp_path, count=20)
    extent = tmp_path / "d-sesparse.vmdk"
    whole = bytearray(extent.read_bytes())
    for number in range(150):
        data = bytearray(whole)
        at = chance.randrange(208) if number % 2 else chance.randrange(4096, 8 * 512 + 24)
        data[at] = chance.choice([1, 0x7F, 0x80, 0xFF])
        extent.write_bytes(data)
        with suppress(ImageError), opened(path) as image:
            image.pread(0, min(image.virtual_size, 8 * MIB))


@pytest.mark.needs_qemu_img
def test_one_disk_of_flat_sparse_and_zero_extents(tmp_path):
    size = 4 * 65536
    chance = random.Random(1)
    (tmp_path / "f.bin").write_bytes(chance.randbytes(65536 + size))
    made(tmp_path / "s.vmdk", "vmdk", size)
    se_sparse(tmp_path / "se.vmdk", {5: b"s" * 4096}, size // 512)
    sectors = size // 512
    lines = [
        f'RW {sectors} FLAT "f.bin" 128',
        f'RW {sectors} SPARSE "s.vmdk"',
        f"RW {sectors} ZERO",
        f'RW {sectors} SESPARSE "se.vmdk"',
    ]
    flat = (tmp_path / "f.bin").read_bytes()[65536:]
    model = bytearray(flat + bytes(3 * size))
    model[3 * size + 5 * 4096 : 3 * size + 6 * 4096] = b"s" * 4096
    path = described(tmp_path / "d.vmdk", "custom", *lines)
    assert chain_read(path) == model
    path = described(tmp_path / "w.vmdk", "twoGbMaxExtentSparse", *lines[:3])
    model = model[: 3 * size]
    with opened(path, writable=True) as image:
        for offset in (size - 700, 2 * size - 4096, size + 65536):
            data = chance.randbytes(4000)
            image.pwrite(offset, data)
            model[offset : offset + 4000] = data
        image.write_zeroes(2 * size - 100, 65536)
        model[2 * size - 100 : 2 * size] = bytes(100)
        with pytest.raises(UnsupportedImage, match="ZERO"):
            image.pwrite(2 * size + 9, b"x")
        assert image.pread(0, len(model)) == model
    assert chain_read(path) == model
    # QEMU passes over extents of kind ZERO.
    assert by_qemu(path, "vmdk", tmp_path) == model[: 2 * size]


@pytest.mark.needs_qemu_img
def test_a_directory_without_room_moves_when_the_disk_grows(tmp_path):
    path = made(tmp_path / "g.vmdk", "vmdk", 3 << 30)
    data = random.Random(4).randbytes(MIB)
    with opened(path, writable=True) as image:
        image.pwrite((3 << 30) - MIB, data)
        image.resize(9 << 30)
        image.pwrite((9 << 30) - MIB, data)
    sample_is_as_qemu_reads_it(path, "vmdk")
    with opened(path) as image:
        assert image.virtual_size == 9 << 30
        assert image.pread((3 << 30) - MIB, 2 * MIB) == data + bytes(MIB)
        assert image.pread((9 << 30) - MIB, MIB) == data
        assert image.check().corruptions == 0
    check_by_qemu(path, "vmdk")
    text = path.read_bytes()[512 : 21 * 512].decode().rstrip("\0")
    assert f"RW {(9 << 30) // 512} SPARSE" in text
    assert 'ddb.geometry.cylinders = "16383"' in text


@pytest.mark.needs_qemu_img
def test_a_split_disk_gets_and_loses_files(tmp_path):
    path = made(tmp_path / "g.vmdk", "vmdk", 2 << 30, subformat="twoGbMaxExtentSparse")
    with opened(path, writable=True) as image:
        image.pwrite(5, b"first")
        image.resize(7 << 30)
        image.pwrite((7 << 30) - 512, b"e" * 512)
    assert len(list(tmp_path.glob("g-s*.vmdk"))) == 4
    with opened(path) as image:
        assert image.pread((7 << 30) - 512, 512) == b"e" * 512
    check_by_qemu(path, "vmdk")
    with opened(path, writable=True) as image:
        image.resize(MIB)
        image.resize(2 * MIB)
    assert len(list(tmp_path.glob("g-s*.vmdk"))) == 1
    assert chain_read(path) == b"\0\0\0\0\0first".ljust(2 * MIB, b"\0")
    check_by_qemu(path, "vmdk")


@pytest.mark.needs_qemu_img
def test_grains_that_name_no_place_are_found_and_forgotten(tmp_path):
    path = made(tmp_path / "b.vmdk", "vmdk", 4 * MIB)
    with opened(path, writable=True) as image:
        image.pwrite(0, b"a" * MIB)
        image.flush()
        sparse = image.parts[0].sparse
        sparse._set(65536, 1 << 30)
        sparse._set(2 * 65536, sparse.place_of(0) // 512)
        sparse.publish()
    with opened(path) as image:
        result = image.check()
        assert result.corruptions == 2, result.messages
    with opened(path, writable=True, allow_dirty=True) as image:
        result = image.check(repair="all")
        assert (result.corruptions, result.corruptions_fixed) == (0, 2)
    check_by_qemu(path, "vmdk")
    assert chain_read(path)[:MIB] == b"a" * 65536 + bytes(65536) + b"a" * (MIB - 2 * 65536)
