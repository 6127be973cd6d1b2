"""Real file systems that are full, that fail, and that share blocks."""

import os
import random
import subprocess
from contextlib import contextmanager

import pytest

from tests.image.operations.support import KIB, MIB, content, opened, qemu_img
from wirt.errors import ImageIoError, ImageNoSpace
from wirt.image.commit import commit
from wirt.image.convert import ConvertSettings, convert
from wirt.image.create import create_image
from wirt.image.dd import dd
from wirt.image.kernel_copy import shares_blocks
from wirt.image.rebase import flatten, rebase
from wirt.image.storage.file import FileStorage

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_qemu_img]
SIZE = 2 * MIB


@contextmanager
def mounted(place, *words):
    """Mount; where this host does not let us, the test is skipped."""
    place.mkdir()
    done = subprocess.run(["mount", *words, place], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@contextmanager
def loop_device(store):
    made = subprocess.run(
        ["losetup", "--find", "--show", store], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no loop devices: {made.stderr}")
    try:
        yield made.stdout.strip()
    finally:
        subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


def converted(source, target, name="qcow2", **settings):
    with opened(source) as image:
        convert([image], str(target), name, ConvertSettings(**settings))


def into(target, act, **options):
    with opened(target, "qcow2", writable=True, **options) as image:
        act(image)


def dd_copy(place):
    with opened(place / "top") as image:
        dd(image, str(place / "new"), "qcow2", block_size=4096)


OPERATIONS = {
    "convert": lambda place: converted(place / "top", place / "new"),
    "convert packed": lambda place: converted(place / "top", place / "new", compressed=True),
    "convert to raw": lambda place: converted(place / "top", place / "new", "raw"),
    "convert to vmdk": lambda place: converted(place / "top", place / "new", "vmdk"),
    "convert, resumed": lambda place: converted(place / "top", place / "new", resume=True),
    "dd": dd_copy,
    "commit": lambda place: commit(str(place / "top")),
    "rebase": lambda place: rebase(str(place / "top"), "other", backing_format="qcow2"),
    "flatten": lambda place: flatten(str(place / "top")),
    "snapshot": lambda place: into(place / "top", lambda image: image.snapshot_create("s")),
    "resize": lambda place: into(
        place / "top", lambda image: image.resize(SIZE * 2, preallocation="full")
    ),
    "bitmap": lambda place: into(
        place / "top", lambda image: image.bitmap_add("b", granularity=512)
    ),
    "amend": lambda place: into(place / "top", lambda image: image.amend({"refcount_bits": "64"})),
    "create": lambda place: create_image(
        str(place / "new"), "qcow2", SIZE, options={"preallocation": "full"}
    ),
}


def prepared(place):
    """Make an overlay over one of two bases; return what its guest sees."""
    dice = random.Random(1)
    for name in ("base", "other"):
        create_image(str(place / name), "qcow2", SIZE)
        into(place / name, lambda image: image.pwrite(0, dice.randbytes(MIB)))
    create_image(str(place / "top"), "qcow2", SIZE, backing="base", backing_format="qcow2",
                 options={"cluster_size": "4096"})  # fmt: skip
    into(place / "top", lambda image: image.pwrite(500 * KIB, dice.randbytes(800 * KIB)))
    return content(place / "top")


def fill(place, leaving):
    """Leave so many bytes free."""
    free = os.statvfs(place)
    room = free.f_bavail * free.f_bsize - leaving
    with (place / "ballast").open("wb") as file:
        file.write(bytes(max(0, room)))


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_a_full_disk_is_said_and_loses_nothing(operation, tmp_path):
    said = []
    for number, leaving in enumerate((0, 4, 40, 400)):
        with mounted(tmp_path / f"disk{number}", "-t", "tmpfs", "-o", "size=16M", "tmpfs") as place:
            before = prepared(place)
            fill(place, leaving * KIB)
            try:
                operation(place)
            except ImageNoSpace as error:
                said.append(error.hint)
                new = (place / "new").exists()
                assert not new
            unharmed(place, before)
            (place / "ballast").unlink()
            (place / "new").unlink(missing_ok=True)
            if not said or (place / "new.partial").exists() or not _done(operation, place):
                operation(place)
            unharmed(place, before)
            assert not list(place.glob("*.partial*"))
    assert said, "the disk was never full"
    assert all("free space" in hint for hint in said)


def _done(operation, place):
    """Return whether it cannot be done a second time: it was done, though at the limit."""
    with opened(place / "top", with_backing=False) as image:
        return (
            (operation is OPERATIONS["bitmap"] and bool(image.bitmaps()))
            or (operation is OPERATIONS["flatten"] and not image.backing_name)
            or (operation is OPERATIONS["commit"] and not image.backing_name)
        )


def unharmed(place, before):
    found = content(place / "top")
    assert found[: len(before)] == before
    assert not any(found[len(before) :])
    for name in ("base", "other", "top"):
        qemu_img("check", "-f", "qcow2", place / name, ok=(0, 3))
        with opened(place / name, with_backing=False) as image:
            assert image.check().corruptions == 0


def test_a_disk_that_fills_while_threads_write_is_said_and_left_clean(tmp_path):
    source, packed = tmp_path / "source", tmp_path / "packed"
    source.write_bytes(random.Random(1).randbytes(MIB) * 12)
    converted(source, packed, compressed=True)
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=4M", "tmpfs") as place:
        with pytest.raises(ImageNoSpace, match="space"):
            converted(packed, place / "new", "raw", workers=4)
        assert not list(place.iterdir())


def test_a_device_that_cannot_be_read_is_named_or_salvaged(tmp_path):
    data = random.Random(1).randbytes(MIB)
    store = tmp_path / "store"
    store.write_bytes(data + data)
    with loop_device(store) as device:
        os.truncate(store, MIB)  # what lies behind can no longer be read
        with pytest.raises(ImageIoError) as caught:
            converted(device, tmp_path / "new", offload=False)
        assert caught.value.path
        assert not list(tmp_path.glob("new*"))
        with opened(device, "raw") as image:
            done = convert([image], str(tmp_path / "new"), "raw", ConvertSettings(salvage=True))
        assert sum(length for _, length in done.unreadable) == MIB
    assert (tmp_path / "new").read_bytes() == data + bytes(MIB)


def test_a_device_that_cannot_be_written_is_named(tmp_path):
    """The device takes every write; that they are lost is said only when they are flushed."""
    source = tmp_path / "source"
    source.write_bytes(random.Random(1).randbytes(2 * MIB))
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=1M", "tmpfs") as small:
        (small / "store").touch()
        os.truncate(small / "store", 4 * MIB)
        with loop_device(small / "store") as device, pytest.raises(ImageIoError):
            converted(source, device, "raw", into_existing=True)


@pytest.mark.needs_tool("mkfs.xfs")
def test_where_files_can_share_blocks_a_conversion_takes_no_space(tmp_path):
    store = tmp_path / "xfs"
    store.touch()
    os.truncate(store, 512 * MIB)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", store], check=True, capture_output=True)
    data = random.Random(1).randbytes(24 * MIB) + bytes(8 * MIB)
    with mounted(tmp_path / "place", "-o", "loop", store) as place:
        (place / "a.raw").write_bytes(data)
        os.sync()
        before = os.statvfs(place).f_bfree
        converted(place / "a.raw", place / "b.qcow2")
        converted(place / "b.qcow2", place / "c.raw", "raw")
        os.sync()
        taken = (before - os.statvfs(place).f_bfree) * os.statvfs(place).f_bsize
        assert taken < 8 * MIB
        assert (place / "c.raw").read_bytes() == data
        qemu_img("check", "-f", "qcow2", place / "b.qcow2")
        qemu_img("compare", "-f", "qcow2", "-F", "raw", place / "b.qcow2", place / "a.raw")
        with (
            FileStorage(str(place / "a.raw")) as one,
            FileStorage(str(place / "c.raw"), writable=True) as other,
        ):
            assert shares_blocks(one, other)
        with opened(place / "b.qcow2", "qcow2", writable=True) as image:
            image.pwrite(0, b"changed")  # sharing is copy on write
        assert (place / "a.raw").read_bytes() == data
