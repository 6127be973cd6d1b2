"""COW overlays, against the kernel of User-mode Linux, uml_moo and uml_mkcow.

User-mode Linux itself makes the overlays here: its kernel mounts the disk (and writes to it),
then finds no init and stops. No program of today reads QEMU's version 2: an independent writer
in this file stands for it.
"""

import os
import random
import shutil
import struct
import subprocess
from itertools import pairwise

import pytest

from tests.image.formats.support import MIB, chain_read, exercised, made, mutated, opened, read_all
from tests.image.powercut import Log, Recorder, cut
from wirt.errors import CorruptImage, ImageAccessDenied, UnsupportedImage, UsageError
from wirt.image.base import ExtentKind, OpenOptions
from wirt.image.commit import commit
from wirt.image.convert import ConvertSettings, convert
from wirt.image.create import create_image
from wirt.image.formats.cow import FORMAT
from wirt.image.open import open_image
from wirt.image.probe import probe_file
from wirt.image.rebase import rebase

SIZE = 4 * MIB
UML = ["uml1", "uml2", "uml3"]


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "back.img"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    os.utime(path, (1_700_000_000, 1_700_000_000))
    return path


def run(*words):
    subprocess.run(
        [str(word) for word in words], check=True, capture_output=True, timeout=600, cwd="/"
    )


def overlay(path, backing, size=0, kind="uml3"):
    options = {"subformat": kind}
    create_image(str(path), "cow", size, backing=backing, backing_format="raw", options=options)
    return path


def merged(cow):
    """Return the disk as uml_moo merges it."""
    out = cow.with_suffix(".merged")
    out.unlink(missing_ok=True)
    run("uml_moo", cow, out)
    return out.read_bytes()


def filesystem(path):
    run("mke2fs", "-q", "-t", "ext4", "-E", "no_copy_xattrs", path, "6M")
    return path


def boot(cow, back, mode):
    """Let the kernel of User-mode Linux mount the disk; return what it said.

    Once in many runs of the suite, on a busy host, it did not mount its root, and in none of
    some fifty runs of this test alone. It is started again then; what it says of that is printed.
    """
    for _ in range(3):
        done = subprocess.run(
            ["linux.uml", f"ubd0={cow},{back}", "mem=64M", "root=/dev/ubda", mode,
             "con=null", "con0=null,fd:1"],
            check=False, capture_output=True, timeout=600, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        said = done.stdout.decode("latin-1")
        if "mounted filesystem" in said:
            break
        print(said)
    return said


@pytest.mark.needs_tool("linux.uml")
@pytest.mark.needs_tool("uml_moo")
@pytest.mark.needs_tool("mke2fs")
def test_an_overlay_that_user_mode_linux_made_reads_as_uml_moo_merges_it(tmp_path):
    back = filesystem(tmp_path / "back.img")
    before = back.read_bytes()
    cow = tmp_path / "disk.cow"
    assert "EXT4-fs (ubda): mounted filesystem" in boot(cow, back, "rw")
    assert probe_file(str(cow)) == "cow"
    data = chain_read(cow)
    assert data != before
    assert data == merged(cow)
    assert back.read_bytes() == before


@pytest.mark.needs_tool("linux.uml")
@pytest.mark.needs_tool("uml_moo")
@pytest.mark.needs_tool("mke2fs")
def test_user_mode_linux_mounts_and_writes_what_was_written_into_an_overlay(tmp_path):
    back = tmp_path / "back.img"
    back.write_bytes(b"\xee" * 6 * MIB)
    disk = filesystem(tmp_path / "fs.img").read_bytes()
    cow = overlay(tmp_path / "disk.cow", "back.img", 0)
    with opened(cow, writable=True) as image:
        image.pwrite(0, disk)
    assert "EXT4-fs (ubda): mounted filesystem" in boot(cow, back, "rw")
    data = chain_read(cow)
    assert data != disk
    assert data == merged(cow)
    result = tmp_path / "result.img"
    result.write_bytes(data)
    subprocess.run(["e2fsck", "-E", "journal_only", "-y", result], check=False, capture_output=True)
    run("e2fsck", "-fn", result)


@pytest.mark.needs_tool("uml_moo")
@pytest.mark.parametrize("kind", UML)
def test_what_is_written_is_what_uml_moo_merges(kind, tmp_path, base):
    model = bytearray(base.read_bytes())
    cow = overlay(tmp_path / "d.cow", "back.img", 0, kind)
    assert chain_read(cow) == model == merged(cow)
    exercised(cow, "cow", model, block=128 << 10)
    assert merged(cow) == model
    assert base.read_bytes() != model


@pytest.mark.needs_tool("uml_mkcow")
@pytest.mark.needs_tool("uml_moo")
def test_an_overlay_made_by_uml_mkcow_can_be_written(tmp_path, base):
    cow = tmp_path / "mk.cow"
    run("uml_mkcow", cow, base)
    model = bytearray(base.read_bytes())
    assert chain_read(cow) == model
    exercised(cow, "cow", model, seed=4, block=128 << 10)
    assert merged(cow) == model


@pytest.mark.needs_tool("uml_moo")
@pytest.mark.parametrize("kind", UML)
def test_commit_merges_into_the_backing_file_as_uml_moo_does(kind, tmp_path, base):
    cow = overlay(tmp_path / "d.cow", "back.img", 0, kind)
    model = bytearray(base.read_bytes())
    exercised(cow, "cow", model, seed=9, block=64 << 10)
    kept = shutil.copy2(base, tmp_path / "kept.img")
    run("uml_moo", "-d", shutil.copy2(cow, tmp_path / "twin.cow"))
    by_uml_moo = base.read_bytes()
    shutil.copy2(kept, base)
    assert commit(str(cow)) == str(base)
    assert base.read_bytes() == by_uml_moo == model
    # Emptied, it still belongs to its backing file, and takes new writes.
    with opened(cow) as image:
        assert [run.kind for run in image.extents(0, SIZE)] == [ExtentKind.HOLE]
        assert read_all(image) == model
    exercised(cow, "cow", model, seed=10, block=64 << 10)
    assert merged(cow) == model


def test_a_changed_or_other_backing_file_is_refused_until_it_is_named_again(tmp_path, base):
    cow = overlay(tmp_path / "d.cow", "back.img", SIZE)
    with opened(cow, writable=True) as image:
        image.pwrite(5000, b"above")
    with pytest.raises(ImageAccessDenied):
        open_image(str(cow))
    os.utime(base, (1_700_000_500, 1_700_000_500))
    with pytest.raises(CorruptImage, match="changed after"):
        opened(cow)
    rebase(str(cow), "back.img", backing_format="raw", unsafe=True)
    assert chain_read(cow)[5000:5005] == b"above"
    with base.open("ab") as file:
        file.write(b"more")
    with pytest.raises(CorruptImage, match="bytes"):
        opened(cow)
    with pytest.raises(UsageError, match="same size"):
        rebase(str(cow), "back.img", backing_format="raw", unsafe=True)


@pytest.mark.needs_tool("uml_moo")
def test_rebase_keeps_what_the_guest_sees(tmp_path, base):
    model = bytearray(base.read_bytes())
    cow = overlay(tmp_path / "d.cow", "back.img", 0)
    exercised(cow, "cow", model, seed=3, block=64 << 10)
    other = tmp_path / "other.img"
    other.write_bytes(bytes(model[: SIZE // 2]) + random.Random(7).randbytes(SIZE // 2))
    rebase(str(cow), "other.img", backing_format="raw")
    assert chain_read(cow) == model == merged(cow)


def test_the_layouts_of_other_hosts_are_read(tmp_path, base):
    """64-bit kernels until 2005, a big-endian host's version 1."""
    data = base.read_bytes()
    name, mtime = os.fsencode(base), 1_700_000_000
    sectors = SIZE // 512
    heads = {
        "uml3-64": (
            struct.pack(">4sII4xQIII4096s4x", b"OOOM", 3, mtime, SIZE, 512, 4096, 0, name),
            8192, 4096,
        ),
        "uml1": (struct.pack(">4sI256sIQI", b"OOOM", 1, name, mtime, SIZE, 512), 280, 512),
    }  # fmt: skip
    for kind, (head, bitmap, align) in heads.items():
        start = -(-(bitmap + sectors // 8) // align) * align
        raw = bytearray(start + SIZE)
        raw[: len(head)] = head
        raw[bitmap + 100] = 0b0010_0001
        raw[start + 800 * 512 : start + 801 * 512] = b"a" * 512
        raw[start + 805 * 512 : start + 806 * 512] = b"b" * 512
        cow = tmp_path / f"{kind}.cow"
        cow.write_bytes(raw)
        model = bytearray(data)
        model[800 * 512 : 801 * 512] = b"a" * 512
        model[805 * 512 : 806 * 512] = b"b" * 512
        with opened(cow) as image:
            assert image.info().specific["subformat"] == kind
            assert read_all(image) == model


def qemu_cow(path, data, held, *, wide=True, name=b""):
    """Write version 2 as QEMU 0.9 to 2.1 did: ``held`` are the sectors that are its own."""
    layout = ">4sI1024sI4xQI4x" if wide else ">4sI1024sIQI"
    head = struct.pack(layout, b"OOOM", 2, name, 0, len(data), 512)
    bits = bytearray(-(-len(data) // 512 // 8))
    start = -(-(len(head) + len(bits)) // 512) * 512
    raw = bytearray(start)
    for sector in held:
        bits[sector // 8] |= 1 << sector % 8
        end = start + (sector + 1) * 512
        raw.extend(bytes(max(0, end - len(raw))))
        raw[end - 512 : end] = data[sector * 512 : (sector + 1) * 512]
    raw[: len(head) + len(bits)] = head + bits
    path.write_bytes(raw)
    return path


SHAPES = {
    "empty": [],
    "all": range(200),
    "hole first": range(50, 200),
    "hole between": [*range(40), *range(90, 200)],
    "every second": range(0, 200, 2),
    "last only": [199],
}


@pytest.mark.parametrize("wide", [True, False], ids=["64-bit", "32-bit"])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_overlay_of_the_first_qemu_is_read_and_written(shape, wide, tmp_path):
    held = set(SHAPES[shape])
    data = random.Random(2).randbytes(200 * 512)
    below = random.Random(3).randbytes(180 * 512)  # shorter: zeros show behind its end
    (tmp_path / "below").write_bytes(below)
    path = qemu_cow(tmp_path / "q.cow", data, held, wide=wide, name=b"below")
    under = below.ljust(len(data), b"\0")
    model = bytearray(
        b"".join((data if at in held else under)[at * 512 : (at + 1) * 512] for at in range(200))
    )
    with opened(path) as image:
        assert image.info().specific["subformat"] == "qemu"
        assert read_all(image) == model
        kinds = [run.kind is ExtentKind.DATA for run in image.extents(0, len(data))]
        assert all(one != other for one, other in pairwise(kinds))
    exercised(path, "cow", model, block=20 << 10)
    assert (tmp_path / "below").read_bytes() == below


def test_what_is_made_for_qemu_has_the_bytes_that_qemu_wrote(tmp_path):
    theirs = qemu_cow(tmp_path / "theirs.cow", bytes(SIZE), [])
    ours = made(tmp_path / "ours.cow", "cow", SIZE)
    assert ours.read_bytes() == theirs.read_bytes()
    data = random.Random(5).randbytes(SIZE)
    (tmp_path / "disk.raw").write_bytes(data)
    with open_image(str(tmp_path / "disk.raw"), format="raw") as source:
        convert([source], str(tmp_path / "c.cow"), "cow", ConvertSettings())
    everything = qemu_cow(tmp_path / "t.cow", data, range(SIZE // 512))
    assert (tmp_path / "c.cow").read_bytes() == everything.read_bytes()


@pytest.mark.parametrize("kind", ["uml1", "uml2"])
def test_sectors_that_the_old_versions_have_no_bit_for(kind, tmp_path, base):
    with base.open("ab") as file:
        file.write(b"t" * 3 * 512)
    with pytest.raises(UsageError, match="cannot write the last sectors"):
        overlay(tmp_path / "n.cow", "back.img", 0, kind)
    assert not (tmp_path / "n.cow").exists()
    layout = {"uml1": "<4sI256sIQI", "uml2": ">4sI4096sIQI"}[kind]
    head = struct.pack(
        layout, b"MOOO" if kind == "uml1" else b"OOOM", int(kind[-1]), os.fsencode(base),
        int(base.stat().st_mtime), SIZE + 1536, 512,
    )  # fmt: skip
    cow = tmp_path / "old.cow"
    cow.write_bytes(head.ljust(SIZE, b"\0"))
    model = bytearray(base.read_bytes())
    with opened(cow, writable=True) as image:
        assert read_all(image) == model
        image.pwrite(SIZE - 512, b"w" * 512)
        with pytest.raises(UnsupportedImage, match="last sectors"):
            image.pwrite(SIZE, b"w" * 512)
    model[SIZE - 512 : SIZE] = b"w" * 512
    assert chain_read(cow) == model


def test_a_partial_last_sector_is_the_backing_files(tmp_path):
    back = tmp_path / "odd.img"
    back.write_bytes(b"x" * 10_000)
    cow = overlay(tmp_path / "odd.cow", "odd.img", 0)
    with opened(cow, writable=True) as image:
        assert image.virtual_size == 10_240
        image.pwrite(9_990, b"end")
    assert chain_read(cow) == (b"x" * 9_990 + b"end" + b"x" * 7).ljust(10_240, b"\0")


def test_what_user_mode_linux_cannot_have_is_refused(tmp_path, base):
    for options, words in (
        ({"subformat": "uml3"}, "without a backing file"),
        ({"subformat": "uml4"}, "Invalid parameter"),
        ({"subformat": "uml3", "backing_file": "back.img", "backing_fmt": "qcow2"}, "raw"),
    ):
        with pytest.raises(UsageError, match=words):
            made(tmp_path / "n.cow", "cow", SIZE, **options)
    with pytest.raises(UsageError, match="as large"):
        overlay(tmp_path / "n.cow", "back.img", SIZE // 2)


def test_a_power_cut_loses_only_what_was_not_flushed():
    storage = Recorder(b"")
    FORMAT.create(storage, 64 << 10, {})
    image = FORMAT.open(storage, OpenOptions(writable=True))
    image.pwrite(0, b"1" * 20_000)
    image.flush()
    old = read_all(image)
    storage.log = Log(bytes(storage.data))
    image.pwrite(4096, b"2" * 30_000)
    image.flush()
    new = read_all(image)
    for seed in range(200):
        disk = Recorder(cut(storage.log, random.Random(seed)).disk)
        found = read_all(FORMAT.open(disk, OpenOptions()))
        for at in range(0, len(old), 512):
            assert found[at : at + 512] in {old[at : at + 512], new[at : at + 512]}


@pytest.mark.parametrize("kind", [*UML, "qemu"])
def test_damaged_overlays_raise_nothing_but_image_errors(kind, tmp_path, base):
    cow = overlay(tmp_path / "m.cow", "back.img", SIZE, kind)
    model = bytearray(base.read_bytes())
    exercised(cow, "cow", model, block=512 << 10)
    mutated(cow, "cow", tmp_path, count=40, head=4200)
