"""VHD: fixed, dynamic and differencing, against qemu-img where it is right and libvhdi."""

import random
import struct
import subprocess

import pytest

from tests.image.formats.oracles import by_libvhdi
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
from wirt.image.convert import ConvertSettings, convert
from wirt.image.open import open_image
from wirt.image.probe import probe_file


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


@pytest.mark.needs_qemu_img
def test_a_size_may_be_rounded_up_to_a_geometry_as_qemu_does(tmp_path):
    for size in (MIB, 17 * MIB + 512, 504 * MIB, 2047 * MIB, 130000 * MIB):
        ours = made(tmp_path / "w.vhd", "vpc", size, force_size="off")
        theirs = tmp_path / "q.vhd"
        command = ["qemu-img", "create", "-q", "-f", "vpc", str(theirs), str(size)]
        subprocess.run(command, check=True)
        with open_image(str(ours)) as mine, open_image(str(theirs)) as other:
            assert mine.virtual_size == other.virtual_size >= size


@pytest.mark.needs_qemu_img
def test_a_disk_is_converted_for_azure(tmp_path):
    raw = tmp_path / "r.raw"
    data = random.Random(1).randbytes(2 * MIB + 512)
    raw.write_bytes(data)
    path = tmp_path / "azure.vhd"
    with opened(raw, "raw") as source:
        convert([source], str(path), "vpc", ConvertSettings(options={"azure": "on"}))
    whole = path.read_bytes()
    assert len(whole) == 3 * MIB + 512
    assert whole[: 3 * MIB] == data.ljust(3 * MIB, b"\0")
    assert whole[3 * MIB :][:8] == b"conectix"
    assert int.from_bytes(whole[3 * MIB + 48 : 3 * MIB + 56]) == 3 * MIB
    info = ["qemu-img", "info", "-f", "vpc", "--output=json", str(path)]
    done = subprocess.run(info, check=True, capture_output=True, text=True)
    assert f'"virtual-size": {3 * MIB},' in done.stdout


def test_a_fixed_disk_grows_and_shrinks_with_its_footer(tmp_path):
    path = made(tmp_path / "f.vhd", "vpc", 3 * MIB, subformat="fixed")
    model = bytearray(random.Random(1).randbytes(3 * MIB))
    with opened(path, writable=True) as image:
        image.pwrite(0, model)
        for size in (3 * MIB + 512, 5 * MIB, MIB, 2 * MIB):
            image.resize(size)
            model = model[:size].ljust(size, b"\0")
            assert path.stat().st_size == size + 512
    assert chain_read(path) == model
    assert by_libvhdi(path) == model


def located(path, code, data):
    """Make the first locator of a child one of another kind."""
    raw = bytearray(path.read_bytes())
    header = 512
    entry = header + 576
    place = int.from_bytes(raw[entry + 16 : entry + 24])
    raw[place : place + 512] = data.ljust(512, b"\0")
    raw[entry : entry + 24 * 8] = (
        code + struct.pack(">IIIQ", 512, len(data), 0, place) + bytes(24 * 7)
    )
    raw[header + 64 : header + 576] = bytes(512)
    raw[header + 36 : header + 40] = bytes(4)
    total = ~sum(raw[header : header + 1024]) & 0xFFFFFFFF
    raw[header + 36 : header + 40] = total.to_bytes(4)
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("code", "data"),
    [
        (b"W2ru", ".\\p a.vhd".encode("utf-16-le")),
        (b"W2ku", "C:\\disks\\p a.vhd".encode("utf-16-le")),
        (b"MacX", b"file://localhost/Users/me/p%20a.vhd"),
        (b"Wi2r", b".\\p a.vhd"),
    ],
)
def test_a_parent_is_found_by_each_kind_of_locator(code, data, tmp_path):
    parent = made(tmp_path / "p a.vhd", "vpc", 2 * MIB)
    with opened(parent, writable=True) as image:
        image.pwrite(0, b"parent")
    child = made(tmp_path / "c.vhd", "vpc", 0, backing="p a.vhd")
    located(child, code, data)
    with opened(child) as image:
        assert image.info().backing_name == "p a.vhd"
        assert image.pread(0, 6) == b"parent"


def test_a_map_of_full_blocks_is_left_alone(tmp_path):
    # As XenServer makes it, behind the table.
    path = made(tmp_path / "x.vhd", "vpc", 4 * MIB)
    raw = path.read_bytes()
    batmap = b"tdbatmap" + struct.pack(">QIII", 2560, 1, 0x10002, 0) + bytes(484)
    path.write_bytes(raw[:2048] + batmap + b"\x40".ljust(512, b"\0") + raw[-512:])
    before = path.read_bytes()[2048:3072]
    with opened(path, writable=True) as image:
        image.pwrite(0, b"x" * 5000)
        image.make_empty()
        image.pwrite(3 * MIB, b"y" * 5000)
    assert path.read_bytes()[2048:3072] == before
    with opened(path) as image:
        assert image.check().corruptions == 0
        assert image.pread(3 * MIB, 5000) == b"y" * 5000
