"""Conversion: every pair of formats against a model and against qemu-img."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.image.operations.support import (
    KIB,
    MIB,
    assert_identical,
    content,
    mixed,
    opened,
    patterned,
    qemu_img,
)
from wirt.errors import (
    CorruptImage,
    ImageAccessDenied,
    ImageInUse,
    ImageIoError,
    ImageNoSpace,
    OutOfBounds,
    UnsupportedImage,
    UsageError,
)
from wirt.image.base import AllowLocalFiles, Image
from wirt.image.concatenated import Concatenated
from wirt.image.convert import ConvertSettings, convert
from wirt.image.create import create_image
from wirt.image.extents import chain_extents
from wirt.image.formats.qcow2.compressed import packed_extent
from wirt.image.open import open_image
from wirt.image.storage.file import FileStorage
from wirt.image.transfer import Transfer

pytestmark = pytest.mark.needs_qemu_img

TARGETS = ["raw", "qcow2", "qcow", "qed", "vdi", "vmdk", "vpc", "vhdx", "parallels"]
VARIANTS = {
    "version 2": {"compat": "0.10"},
    "small clusters": {"cluster_size": "512"},
    "large clusters": {"cluster_size": "2M"},
    "subclusters": {"extended_l2": "on", "cluster_size": "128k"},
    "narrow refcounts": {"refcount_bits": "1"},
    "zstd": {"compression_type": "zstd"},
    "metadata": {"preallocation": "metadata"},
}


def converted(source, target, name, **settings):
    with opened(source) as image:
        return convert([image], str(target), name, ConvertSettings(**settings))


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk.qcow2"
    return path, mixed(path)


@pytest.mark.parametrize("name", TARGETS)
def test_a_chain_becomes_an_image_of_every_format(disk, name, tmp_path):
    path, model = disk
    target = tmp_path / "target"
    converted(path, target, name)
    if name == "vpc":
        # QEMU rounds a VHD up to a geometry and reads the rest as zeros.
        assert content(target, name)[: len(model)] == model
        return
    assert_identical(target, name, model)


@pytest.mark.parametrize("name", TARGETS)
def test_an_image_of_every_format_becomes_qcow2(disk, name, tmp_path):
    path, model = disk
    middle, target = tmp_path / "middle", tmp_path / "target"
    qemu_img("convert", "-O", name, path, middle)
    converted(middle, target, "qcow2", into_existing=False)
    found = content(target, "qcow2")
    assert found[: len(model)] == model
    assert not any(found[len(model) :])
    qemu_img("check", target)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("compressed", [False, True])
def test_every_kind_of_qcow2_is_written(disk, variant, compressed, tmp_path):
    path, model = disk
    target = tmp_path / "target"
    converted(path, target, "qcow2", options=VARIANTS[variant], compressed=compressed)
    assert_identical(target, "qcow2", model)


@pytest.mark.parametrize("level", ["fast", "normal", "best"])
@pytest.mark.parametrize("codec", ["zlib", "zstd"])
def test_compressed_clusters_are_small_and_right(level, codec, tmp_path):
    source = tmp_path / "source"
    model = bytes(patterned(3, 5 * MIB + 512, 64 * KIB))
    source.write_bytes(model)
    target = tmp_path / "target"
    options = {"compression_type": codec}
    converted(source, target, "qcow2", compressed=True, level=level, options=options)
    assert_identical(target, "qcow2", model)
    with opened(target) as image:
        assert any(extent.compressed for extent in chain_extents(image))
    again = tmp_path / "again"
    converted(target, again, "raw")
    assert again.read_bytes() == model


def test_the_window_stays_small_for_old_readers(tmp_path):
    import zlib

    far = random.Random(1).randbytes(16 * KIB)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes((far + far) * 2)
    converted(source, target, "qcow2", compressed=True, window_4k=True)
    assert_identical(target, "qcow2", source.read_bytes())
    # Nothing was to be found within 4 KiB, so the cluster is stored as it is.
    with opened(target) as image:
        assert not any(extent.compressed for extent in chain_extents(image))
    assert len(zlib.compress(source.read_bytes())) < 20 * KIB
    converted(source, target, "qcow2", compressed=True)
    with opened(target) as image:
        assert any(extent.compressed for extent in chain_extents(image))


def test_zeros_are_not_stored_unless_asked_for(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    data = bytearray(bytes(4 * MIB))
    data[MIB : MIB + 4096] = random.Random(1).randbytes(4096)
    source.write_bytes(data)
    converted(source, target, "raw")
    assert target.read_bytes() == data
    assert os.stat(target).st_blocks * 512 <= 8 * KIB
    converted(source, target, "raw", zero_unit=0)
    assert os.stat(target).st_blocks * 512 >= 4 * MIB
    converted(source, target, "qcow2", zero_unit=0)
    assert_identical(target, "qcow2", data)
    with opened(target) as image:
        assert sum(e.length for e in chain_extents(image) if e.kind.value == "data") == 4 * MIB


def test_overlays_among_several_sources_keep_what_their_backing_images_hold(tmp_path):
    below = patterned(8, MIB, 4096)
    (tmp_path / "below.raw").write_bytes(below)
    first, second, target = (tmp_path / name for name in ("a.qcow2", "b.qcow2", "t.raw"))
    create_image(str(first), "qcow2", MIB, backing="below.raw", backing_format="raw")
    create_image(str(second), "qcow2", MIB)
    with opened(first) as one, opened(second) as other:
        convert([one, other], str(target), "raw")
    assert target.read_bytes() == below + bytes(MIB)


def test_several_sources_follow_one_another(tmp_path):
    parts = []
    for number, size in enumerate((MIB, 65 * KIB, 3 * MIB)):
        part = tmp_path / f"part{number}"
        part.write_bytes(patterned(number, size, 4096))
        parts.append(part)
    joined = Concatenated([open_image(str(part)) for part in parts])
    with joined:
        convert(joined.parts, str(tmp_path / "target"), "qcow2")
        with pytest.raises(OutOfBounds):
            joined.pread(joined.virtual_size, 1)
    model = b"".join(part.read_bytes() for part in parts)
    assert_identical(tmp_path / "target", "qcow2", model)


def test_an_overlay_gets_only_what_the_first_layer_holds(disk, tmp_path):
    path, model = disk
    target = tmp_path / "target"
    with opened(path) as image:
        convert(
            [image],
            str(target),
            "qcow2",
            ConvertSettings(backing="disk.qcow2.below", backing_format="qcow2"),
        )
        own = sum(e.length for e in image.extents(0, len(model)) if e.kind.value != "hole")
    assert_identical(target, "qcow2", model)
    with opened(target) as image:
        copied = sum(e.length for e in image.extents(0, len(model)) if e.kind.value != "hole")
    assert copied == own


@pytest.mark.parametrize("name", ["raw", "qcow2"])
def test_an_existing_target_is_overwritten_also_with_zeros(disk, name, tmp_path):
    path, model = disk
    target = tmp_path / "target"
    create_image(str(target), name, len(model) + MIB)
    with opened(target, name, writable=True) as image:
        image.pwrite(0, b"\xff" * (len(model) + MIB))
    converted(path, target, name, into_existing=True)
    assert_identical(target, name, model + b"\xff" * MIB)


def test_a_target_known_to_be_zero_is_only_written_where_there_is_data(disk, tmp_path):
    path, model = disk
    target = tmp_path / "target"
    create_image(str(target), "raw", len(model))
    converted(path, target, "raw", into_existing=True, target_is_zero=True)
    assert target.read_bytes() == model
    assert os.stat(target).st_blocks * 512 < len(model)


def test_the_old_file_stays_until_the_new_one_is_complete(disk, tmp_path):
    path, _ = disk
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    target.chmod(0o640)
    seen = []

    def stop(done, total):
        seen.append((target.read_bytes(), done, total))
        raise KeyboardInterrupt

    with opened(path) as image, pytest.raises(KeyboardInterrupt):
        convert([image], str(target), "qcow2", progress=stop)
    assert seen[0][0] == b"precious"
    assert target.read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "disk.qcow2",
        "disk.qcow2.below",
        "target",
    ]
    converted(path, target, "qcow2")
    assert target.stat().st_mode & 0o777 == 0o640


def test_killed_at_any_moment_the_old_file_is_whole(disk, tmp_path):
    path, model = disk
    target = tmp_path / "target"
    source = tmp_path / "large.raw"
    source.write_bytes(patterned(9, 24 * MIB, 64 * KIB))
    converted(path, target, "qcow2")
    code = (
        "import sys\n"
        "from wirt.image.convert import convert, ConvertSettings\n"
        "from wirt.image.open import open_image\n"
        "print('ready', flush=True)\n"
        "with open_image(sys.argv[1], format='raw') as image:\n"
        "    convert([image], sys.argv[2], 'qcow2', ConvertSettings(compressed=True))\n"
    )
    dice = random.Random(os.getpid())
    outcomes = set()
    for _ in range(12):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(source), str(target)], stdout=subprocess.PIPE
        )
        child.stdout.readline()
        time.sleep(dice.uniform(0, 0.3))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        with opened(target, "qcow2") as image:
            outcomes.add(image.virtual_size)
        qemu_img("check", target)
    assert outcomes <= {len(model), 24 * MIB}
    converted(path, target, "qcow2")
    assert_identical(target, "qcow2", model)
    assert not target.with_name("target.partial").exists()


def test_a_target_in_use_is_refused(disk, tmp_path):
    path, model = disk
    target = tmp_path / "target"
    converted(path, target, "qcow2")
    with opened(target, writable=True), pytest.raises(ImageInUse):
        converted(path, target, "qcow2")
    with opened(path) as image, pytest.raises(ImageInUse):
        convert([image], str(path), "qcow2")
    assert content(path) == model


def test_a_full_disk_is_said_and_leaves_nothing(disk, tmp_path, monkeypatch):
    path, _ = disk
    from wirt.image.storage.file import FileStorage

    written = []
    plain = FileStorage.pwrite

    def full(self, offset, data):
        written.append(len(data))
        if sum(written) > MIB:
            raise ImageNoSpace("No space left on device", path=self.name)
        plain(self, offset, data)

    monkeypatch.setattr(FileStorage, "pwrite", full)
    with pytest.raises(ImageNoSpace):
        converted(path, tmp_path / "target", "qcow2")
    assert not list(tmp_path.glob("target*"))


def test_unreadable_parts_become_zeros_when_salvaging(tmp_path):
    class Bad(Image):
        format_name = "bad"

        def __init__(self, image):
            self.image, self.storage = image, image.storage
            self.virtual_size = image.virtual_size

        def pread(self, offset, length):
            if offset < 70 * KIB < offset + length:
                raise ImageIoError("Input/output error")
            return self.image.pread(offset, length)

        def extents(self, offset, length):
            return self.image.extents(offset, length)

        def info(self):
            return self.image.info()

    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"\xaa" * MIB)
    with open_image(str(source)) as image:
        with pytest.raises(ImageIoError):
            convert([Bad(image)], str(target), "raw")
        assert not target.exists()
        done = convert([Bad(image)], str(target), "raw", ConvertSettings(salvage=True))
    assert list(done.unreadable) == [(68 * KIB, 4096)]
    model = bytearray(b"\xaa" * MIB)
    model[68 * KIB : 72 * KIB] = bytes(4096)
    assert target.read_bytes() == model


@pytest.fixture
def packed(tmp_path):
    """Return a compressed image of several jobs, and its bytes."""
    data = patterned(3, 12 * MIB, 64 * KIB)
    raw, path = tmp_path / "packed.raw", tmp_path / "packed.qcow2"
    raw.write_bytes(data)
    converted(raw, path, "qcow2", compressed=True)
    return path, data


def test_a_compressed_image_overwrites_an_existing_target_also_with_zeros(packed, tmp_path):
    path, data = packed
    target = tmp_path / "target"
    target.write_bytes(b"\xee" * len(data))
    converted(path, target, "raw", into_existing=True, workers=4)
    assert target.read_bytes() == data


def test_clusters_that_cannot_be_unpacked_are_named_in_order_when_salvaging(packed, tmp_path):
    path, data = packed
    target, model = tmp_path / "target", bytearray(data)
    broken = [at for at in (2 * MIB, 7 * MIB, 11 * MIB) if any(data[at : at + 64 * KIB])]
    with opened(path) as image:
        places = [next(image._mapping.runs(at, 1)).host for at in broken]
    with path.open("r+b") as file:
        for entry in places:
            file.seek(packed_extent(entry, 16)[0])
            file.write(b"\xff" * 64)  # no kind of deflate block
    with pytest.raises(CorruptImage):
        converted(path, target, "raw")
    assert not target.exists()
    done = converted(path, target, "raw", salvage=True, workers=4)
    pieces = [(at + piece, 4096) for at in broken for piece in range(0, 64 * KIB, 4096)]
    assert len(broken) > 1
    assert list(done.unreadable) == pieces
    for at in broken:
        model[at : at + 64 * KIB] = bytes(64 * KIB)
    assert target.read_bytes() == model


def test_bitmaps_come_along_when_asked_for(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    create_image(str(source), "qcow2", 4 * MIB)
    qemu_img("bitmap", "--add", "-g", "65536", source, "one")
    qemu_img("bitmap", "--add", "--disable", source, "two")
    with opened(source, writable=True) as image:
        image.pwrite(MIB, b"x" * 65536)
    converted(source, target, "qcow2", bitmaps=True)
    with opened(source) as a, opened(target) as b:
        assert list(a.bitmaps()) == list(b.bitmaps())
        assert list(b.bitmap_dirty("one")) == list(a.bitmap_dirty("one")) == [(MIB, 65536)]
    qemu_img("check", target)
    raw = tmp_path / "raw"
    with pytest.raises(UsageError, match="bitmaps"):
        converted(source, raw, "raw", bitmaps=True)
    assert not raw.exists()


def test_a_small_file_that_declares_terabytes_is_refused(tmp_path):
    """Every L2 entry of a 12 MiB image points at one compressed cluster: 2 TiB of data."""
    bomb = tmp_path / "bomb.qcow2"
    create_image(str(bomb), "qcow2", 2 << 40, options={"cluster_size": "2M"})
    with opened(bomb, writable=True) as image:
        image.write_compressed(0, b"\x03\x00", bytes(2 * MIB))
        image.flush()
        word = image.volume.mapping.table(0).words[0]
        size, shift = image.header.cluster_size, image.volume.mapping.shift
        end = image.storage.size()
        table = word.to_bytes(8, "big") * (size // 8)
        entries = b"".join(
            (end + i * size | 1 << 63).to_bytes(8, "big") for i in range((2 << 40) >> shift)
        )
        l1 = image.header.l1_offset
    with bomb.open("r+b") as file:
        for _ in range(len(entries) // 8):
            file.seek(0, 2)
            file.write(table)
        file.seek(l1)
        file.write(entries)
    assert bomb.stat().st_size < 20 * MIB
    started = time.process_time()
    with pytest.raises(OutOfBounds, match="declares more than"):
        converted(bomb, tmp_path / "target", "raw")
    assert time.process_time() - started < 60
    assert not (tmp_path / "target").exists()


def test_what_cannot_be_written_is_said_before_anything_is(disk, tmp_path):
    path, _ = disk
    target = tmp_path / "target"
    for name, settings, error in (
        ("dmg", {}, UnsupportedImage),
        ("raw", {"compressed": True}, UnsupportedImage),
        ("nonsense", {}, UsageError),
        ("qcow2", {"options": {"nonsense": "1"}}, UsageError),
        ("qcow2", {"target_is_zero": True}, UsageError),
    ):
        with pytest.raises(error):
            converted(path, target, name, **settings)
        assert not target.exists()
    create_image(str(target), "raw", MIB)
    with pytest.raises(UsageError, match="holds 1048576"):
        converted(path, target, "raw", into_existing=True)


def test_only_files_that_the_caller_allows_are_opened(disk, tmp_path):
    path, _ = disk
    with pytest.raises(ImageAccessDenied):
        open_image(str(path))
    with open_image(str(path), gate=AllowLocalFiles()) as image:
        convert([image], str(tmp_path / "target"), "raw")


def test_a_data_file_is_written_beside_the_image(disk, tmp_path):
    path, model = disk
    target = tmp_path / "target.qcow2"
    converted(path, target, "qcow2", options={"data_file": "data", "data_file_raw": "on"})
    assert (tmp_path / "data").read_bytes() == model
    assert content(target) == model


def test_memory_does_not_grow_with_the_disk(tmp_path):
    """The peak while converting 512 MiB is near that for 64 MiB."""
    peaks = []
    for size in (64 * MIB, 512 * MIB):
        source = tmp_path / f"source{size}"
        block = random.Random(1).randbytes(MIB // 2) + b"wirt" * (MIB // 8)
        with source.open("wb") as file:
            for _ in range(size // MIB):
                file.write(block)
        code = (
            "import re, sys\n"
            "from wirt.image.convert import convert, ConvertSettings\n"
            "from wirt.image.open import open_image\n"
            "with open_image(sys.argv[1], format='raw') as image:\n"
            "    settings = ConvertSettings(compressed=True, workers=2)\n"
            "    convert([image], sys.argv[2], 'qcow2', settings)\n"
            "with open_image(sys.argv[2], format='qcow2') as image:\n"
            "    convert([image], sys.argv[2] + '.raw', 'raw', ConvertSettings(workers=2))\n"
            # Not ru_maxrss: a process inherits that of its parent.
            "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(source), str(tmp_path / "target")],
            check=True,
            capture_output=True,
            text=True,
            timeout=900,
        )
        peaks.append(int(done.stdout))
        source.unlink()
    assert peaks[1] < peaks[0] + 16 * 1024, peaks


@pytest.mark.parametrize("offload", [True, None])
def test_the_kernel_copies_the_same_bytes(disk, offload, tmp_path):
    path, model = disk
    for name in ("raw", "qcow2"):
        target = tmp_path / name
        converted(path, target, name, offload=offload)
        assert_identical(target, name, model)
    back = tmp_path / "back"
    converted(tmp_path / "qcow2", back, "raw", offload=offload)
    assert back.read_bytes() == model


def plain_disk(tmp_path):
    """Return a raw image and its bytes: many pieces, zeros between and within them."""
    rng = random.Random(7)
    part = [rng.randbytes(MIB), bytes(64 * KIB), rng.randbytes(5000), bytes(MIB)]
    model = b"".join(rng.choice(part) for _ in range(60)).ljust(64 * MIB, b"\0")
    source = tmp_path / "plain.raw"
    source.write_bytes(model)
    return source, model


@pytest.mark.parametrize("name", ["raw", "qcow2", "vdi"])
def test_threads_copy_what_is_plain(name, tmp_path):
    source, model = plain_disk(tmp_path)
    target = tmp_path / "target"
    with open_image(str(source), format="raw") as image:
        convert([image], str(target), name, ConvertSettings(offload=False, workers=4))
    assert_identical(target, name, model)


def test_what_threads_cannot_write_is_said(tmp_path, monkeypatch):
    source, _ = plain_disk(tmp_path)

    def full(self, offset, data):
        raise ImageNoSpace("no space left", path=self.name)

    monkeypatch.setattr("wirt.image.storage.file.FileStorage.pwrite", full)
    with open_image(str(source), format="raw") as image, pytest.raises(ImageNoSpace):
        convert([image], str(tmp_path / "target"), "raw", ConvertSettings(offload=False))
    assert not (tmp_path / "target").exists()


def test_the_disk_gets_its_work_while_more_is_copied(tmp_path, monkeypatch):
    """What was written begins to go to the disk before all is written, in both kinds of files."""
    source, model = plain_disk(tmp_path)
    monkeypatch.setattr("wirt.image.transfer._FLUSHED_AT_ONCE", 16 * MIB)
    begun = []
    begin = FileStorage.begin_flush
    monkeypatch.setattr(
        FileStorage,
        "begin_flush",
        lambda self: (begun.append(os.fstat(self.fileno()).st_ino), begin(self)),
    )
    for settings in ({}, {"data_file": str(tmp_path / "data")}):
        target = tmp_path / f"target{len(settings)}"
        options = ConvertSettings(offload=False, options=settings)
        with open_image(str(source), format="raw") as image:
            convert([image], str(target), "qcow2", options)
        written = tmp_path / "data" if settings else target
        assert begun == [os.stat(written).st_ino] * (len(model) // (16 * MIB))
        begun.clear()


def test_the_kernel_is_asked_where_files_can_share_blocks(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.write_bytes(os.urandom(MIB))
    copied = []
    monkeypatch.setattr("wirt.image.transfer.shares_blocks", lambda *_: True)
    plain = Transfer._kernel_copy
    monkeypatch.setattr(
        Transfer,
        "_kernel_copy",
        lambda self, extent, offset, end: (
            copied.append(end - offset),
            plain(self, extent, offset, end),
        ),
    )
    converted(source, tmp_path / "target", "qcow2")
    assert sum(copied) == MIB
    assert_identical(tmp_path / "target", "qcow2", source.read_bytes())


def through_a_pipe(source, name, **settings):
    """Convert into a pipe; return what came out."""
    code = (
        "import sys\n"
        "from wirt.image.base import AllowLocalFiles\n"
        "from wirt.image.convert import ConvertSettings, convert\n"
        "from wirt.image.open import open_image\n"
        "with open_image(sys.argv[1], gate=AllowLocalFiles()) as image:\n"
        f"    convert([image], '/dev/stdout', {name!r}, ConvertSettings(**{settings!r}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(source)], capture_output=True, timeout=600, check=True
    )
    return done.stdout


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cluster_size": "512"},
        {"compat": "0.10"},
        {"refcount_bits": "1"},
        {"cluster_size": "2M"},
    ],
    ids=str,
)
def test_a_pipe_takes_qcow2_without_seeking(disk, options, tmp_path):
    path, model = disk
    target = tmp_path / "target"
    target.write_bytes(through_a_pipe(path, "qcow2", options=options))
    assert_identical(target, "qcow2", model)


@pytest.mark.parametrize("size", [0, 512, 70_144, 3 << 20])
def test_a_pipe_takes_disks_of_all_sizes(size, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(patterned(size, size, 4096))
    assert through_a_pipe(source, "raw") == source.read_bytes()
    target.write_bytes(through_a_pipe(source, "qcow2"))
    assert_identical(target, "qcow2", source.read_bytes())


def test_what_a_pipe_cannot_hold_is_refused(disk, tmp_path):
    path, _ = disk
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        for name, settings in (
            ("qcow2", {"compressed": True}),
            ("qcow2", {"options": {"extended_l2": "on"}}),
            ("qcow2", {"options": {"preallocation": "full"}}),
            ("raw", {"backing": "x"}),
        ):
            with pytest.raises(UsageError):
                converted(path, pipe, name, **settings)
        with pytest.raises(UnsupportedImage, match="stream"):
            converted(path, pipe, "vdi")
    finally:
        os.close(reader)


def test_a_reader_that_goes_away_is_named(disk, tmp_path):
    path, _ = disk
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        with opened(path) as image, pytest.raises(ImageIoError, match="gone away"):
            convert([image], f"/dev/fd/{write_end}", "raw")
    finally:
        os.close(write_end)


class Stop(Exception):
    """The conversion is interrupted."""


@pytest.mark.parametrize("compressed", [False, True])
def test_an_interrupted_conversion_goes_on_where_it_was(compressed, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    model = bytes(patterned(2, 16 * MIB, 64 * KIB))
    source.write_bytes(model)
    settings = ConvertSettings(resume=True, compressed=compressed)
    begun = []

    def until(limit):
        def progress(done, total):
            begun.append(done)
            if done >= limit:
                raise Stop

        return progress

    for limit in (5 * MIB, 11 * MIB):
        begun.clear()
        with opened(source) as image, pytest.raises(Stop):
            convert([image], str(target), "qcow2", settings, progress=until(limit))
        assert not target.exists()
    assert begun[0] > 4 * MIB
    with opened(source) as image:
        convert([image], str(target), "qcow2", settings, progress=until(17 * MIB))
    assert_identical(target, "qcow2", model)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source", "target"]


def test_another_source_begins_anew(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(patterned(2, 8 * MIB, 64 * KIB))
    settings = ConvertSettings(resume=True)

    def stop(done, total):
        raise Stop

    with opened(source) as image, pytest.raises(Stop):
        convert([image], str(target), "raw", settings, progress=stop)
    model = bytes(patterned(3, 8 * MIB, 64 * KIB))
    source.write_bytes(model)
    with opened(source) as image:
        convert([image], str(target), "raw", settings)
    assert target.read_bytes() == model


def test_killed_and_resumed_again_and_again_it_is_right_in_the_end(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    model = bytes(patterned(4, 48 * MIB, 64 * KIB))
    source.write_bytes(model)
    code = (
        "import sys\n"
        "import wirt.image.resume as resume\n"
        "resume._SECONDS = 0.05\n"
        "from wirt.image.convert import convert, ConvertSettings\n"
        "from wirt.image.open import open_image\n"
        "print('ready', flush=True)\n"
        "with open_image(sys.argv[1], format='raw') as image:\n"
        "    settings = ConvertSettings(compressed=True, resume=True)\n"
        "    convert([image], sys.argv[2], 'qcow2', settings)\n"
    )
    command = [sys.executable, "-c", code, str(source), str(target)]
    dice = random.Random(os.getpid())
    for _ in range(8):
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        child.stdout.readline()
        time.sleep(dice.uniform(0.05, 0.4))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    assert_identical(target, "qcow2", model)
