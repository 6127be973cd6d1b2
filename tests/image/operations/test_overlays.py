"""Rebase, flatten and commit: what the guest sees must not change."""

import os
import random
import shutil
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
from wirt.errors import ImageAccessDenied, ImageInUse, UnsupportedImage, UsageError
from wirt.image.base import Deny
from wirt.image.commit import commit
from wirt.image.convert import ConvertSettings, convert
from wirt.image.create import create_image
from wirt.image.rebase import flatten, rebase

pytestmark = pytest.mark.needs_qemu_img

KINDS = {
    "standard": {},
    "version 2": {"compat": "0.10"},
    "small clusters": {"cluster_size": "4k"},
    "subclusters": {"extended_l2": "on", "cluster_size": "128k"},
}


@pytest.fixture(params=KINDS)
def disk(request, tmp_path):
    path = tmp_path / "disk.qcow2"
    return path, mixed(path, **KINDS[request.param])


def other_base(tmp_path, size, name="raw"):
    """A base that agrees with the old one in some places, and not in others."""
    path = tmp_path / f"other.{name}"
    old = content(tmp_path / "disk.qcow2.below").ljust(size, b"\xee")[:size]
    dice = random.Random(4)
    data = bytearray(old)
    for _ in range(12):
        at = dice.randrange(size // 4096) * 4096
        data[at : at + 64 * KIB] = patterned(dice.random(), 64 * KIB, 4096)[: size - at]
    create_image(str(path), name, size)
    with opened(path, name, writable=True) as image:
        image.pwrite(0, bytes(data))
    return path


@pytest.mark.parametrize("size", [3 * MIB, 8 * MIB])
@pytest.mark.parametrize("name", ["raw", "qcow2"])
def test_another_backing_image_changes_nothing(disk, name, size, tmp_path):
    path, model = disk
    other = other_base(tmp_path, size, name)
    rebase(str(path), other.name, backing_format=name)
    with opened(path) as image:
        assert image.info().backing_name == other.name
        assert image.info().backing_format == name
    (tmp_path / "disk.qcow2.below").unlink()
    assert_identical(path, "qcow2", model)


def test_rebase_copies_no_more_than_qemu_does(tmp_path):
    path = tmp_path / "disk.qcow2"
    mixed(path)
    other = other_base(tmp_path, 6 * MIB)
    theirs = tmp_path / "theirs.qcow2"
    shutil.copy(path, theirs)
    qemu_img("rebase", "-b", other, "-F", "raw", theirs)
    rebase(str(path), other.name, backing_format="raw")
    with opened(path) as ours, opened(theirs) as peer:
        held = [
            sum(e.length for e in i.extents(0, i.virtual_size) if e.kind.value != "hole")
            for i in (ours, peer)
        ]
    assert held[0] <= held[1] + 64 * KIB


def test_an_image_without_backing_gets_one_and_still_shows_zeros(tmp_path):
    path, base = tmp_path / "disk.qcow2", tmp_path / "base"
    create_image(str(path), "qcow2", 2 * MIB)
    with opened(path, writable=True) as image:
        image.pwrite(MIB, b"data" * KIB)
    model = content(path)
    base.write_bytes(b"\xff" * 2 * MIB)
    rebase(str(path), "base", backing_format="raw")
    assert_identical(path, "qcow2", model)


def test_unsafe_only_changes_the_link(tmp_path):
    path = tmp_path / "disk.qcow2"
    mixed(path)
    os.rename(tmp_path / "disk.qcow2.below", tmp_path / "moved")
    before = path.stat().st_size
    rebase(str(path), "moved", backing_format="qcow2", unsafe=True)
    assert path.stat().st_size == before
    with opened(path) as image:
        assert image.info().backing_name == "moved"
    qemu_img("check", path)
    with pytest.raises(UsageError, match="format"):
        rebase(str(path), "moved", unsafe=True)


def test_flattened_it_needs_no_other_file(disk, tmp_path):
    path, model = disk
    seen = []
    flatten(str(path), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][1] == len(model)
    (tmp_path / "disk.qcow2.below").unlink()
    with opened(path) as image:
        assert not image.info().backing_name
    assert_identical(path, "qcow2", model)
    flatten(str(path))
    assert_identical(path, "qcow2", model)


def test_committed_the_backing_image_shows_it_and_the_overlay_is_empty(disk, tmp_path):
    path, model = disk
    below = tmp_path / "disk.qcow2.below"
    assert commit(str(path)) == str(below)
    assert_identical(below, "qcow2", model)
    assert_identical(path, "qcow2", model)
    with opened(path) as image:
        assert {e.kind.value for e in image.extents(0, len(model))} == {"hole"}


def test_commit_equals_that_of_qemu(disk, tmp_path):
    path, model = disk
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    shutil.copy(path, theirs)
    shutil.copy(tmp_path / "disk.qcow2.below", theirs)
    qemu_img("commit", theirs / "disk.qcow2")
    commit(str(path))
    assert content(tmp_path / "disk.qcow2.below") == content(theirs / "disk.qcow2.below") == model


@pytest.mark.parametrize("says_raw", [False, True])
def test_a_guest_cannot_turn_a_base_into_another_format(says_raw, tmp_path):
    base, trap = tmp_path / "base", tmp_path / "trap"
    base.write_bytes(bytes(MIB))
    create_image(str(trap), "qcow2", MIB)
    head = trap.read_bytes()[:512]
    backing = {"backing": "base", "backing_format": "raw"}
    create_image(str(tmp_path / "top"), "qcow2" if says_raw else "qcow", MIB, **backing)
    with opened(tmp_path / "top", writable=True) as image:
        image.pwrite(0, head)
    if says_raw:
        commit(str(tmp_path / "top"))
        assert base.read_bytes() == head + bytes(MIB - len(head))
        return
    with pytest.raises(ImageAccessDenied, match="would look like qcow2"):
        commit(str(tmp_path / "top"))
    assert base.read_bytes() == bytes(MIB)
    assert content(tmp_path / "top") == head + bytes(MIB - len(head))


def test_commit_keeps_the_overlay_when_asked(tmp_path):
    path = tmp_path / "disk.qcow2"
    model = mixed(path)
    commit(str(path), keep=True)
    with opened(path) as image:
        assert {e.kind.value for e in image.extents(0, len(model))} > {"hole"}
    assert_identical(path, "qcow2", model)


@pytest.mark.parametrize("named", ["bottom.raw", "path"])
def test_commit_into_a_base_further_down(named, tmp_path):
    bottom = tmp_path / "bottom.raw"
    bottom.write_bytes(patterned(8, 4 * MIB, 64 * KIB))
    middle, top = tmp_path / "middle.qcow2", tmp_path / "top.qcow2"
    create_image(str(middle), "qcow2", 3 * MIB, backing="bottom.raw", backing_format="raw")
    with opened(middle, writable=True) as image:
        image.pwrite(MIB, b"middle" * KIB)
        image.write_zeroes(2 * MIB, 64 * KIB)
    create_image(str(top), "qcow2", 5 * MIB, backing="middle.qcow2", backing_format="qcow2")
    with opened(top, writable=True) as image:
        image.pwrite(MIB + 512, b"top" * KIB)
        image.pwrite(5 * MIB - 512, b"e" * 512)
    model = content(top)
    assert not any(model[3 * MIB : 5 * MIB - 512])
    commit(str(top), base=named if named != "path" else str(bottom))
    assert bottom.read_bytes() == model
    assert content(top) == model
    with pytest.raises(UsageError, match="not in the backing chain"):
        commit(str(top), base="elsewhere")


def test_snapshots_bitmaps_and_options_of_the_image_survive_or_are_refused(tmp_path):
    path = tmp_path / "disk.qcow2"
    mixed(path)
    qemu_img("bitmap", "--add", path, "b")
    qemu_img("snapshot", "-c", "one", path)
    for operation in (flatten, commit):
        with pytest.raises(UsageError, match="internal snapshots"):
            operation(str(path))
    qemu_img("snapshot", "-d", "one", path)
    flatten(str(path))
    with opened(path) as image:
        assert [bitmap.name for bitmap in image.bitmaps()] == ["b"]
    qemu_img("check", path)


def test_what_is_in_use_or_not_allowed_is_refused(tmp_path):
    path, below = tmp_path / "disk.qcow2", tmp_path / "disk.qcow2.below"
    model = mixed(path)
    with opened(path), pytest.raises(ImageInUse):
        flatten(str(path))
    with opened(below, writable=True), pytest.raises(ImageInUse):
        flatten(str(path))
    with opened(below), pytest.raises(ImageInUse):
        commit(str(path))
    for operation in (flatten, commit):
        with pytest.raises(ImageAccessDenied):
            operation(str(path), gate=Deny())
    alone = tmp_path / "d.hds"
    create_image(str(alone), "parallels", MIB)
    with pytest.raises(UnsupportedImage) as refused:
        flatten(str(alone))
    assert "convert" in refused.value.hint
    assert_identical(path, "qcow2", model)
    with pytest.raises(UsageError, match="no backing image"):
        commit(str(below))


def test_an_overlay_over_subclusters_keeps_its_zeros(tmp_path):
    """Zeros that end inside a cluster of the target, beside what only the backing holds."""
    base, source, target = tmp_path / "base", tmp_path / "source", tmp_path / "target"
    base.write_bytes(b"\xff" * MIB)
    create_image(
        str(source),
        "qcow2",
        MIB,
        backing="base",
        backing_format="raw",
        options={"cluster_size": "4k"},
    )
    with opened(source, writable=True) as image:
        image.write_zeroes(20 * KIB, 8 * KIB)
        image.write_zeroes(124 * KIB, 80 * KIB)
        image.pwrite(300 * KIB, b"x" * 4096)
    model = content(source)
    for compressed in (False, True):
        with opened(source) as image:
            settings = ConvertSettings(backing="base", backing_format="raw", compressed=compressed)
            convert([image], str(target), "qcow2", settings)
        assert_identical(target, "qcow2", model)


@pytest.mark.parametrize("operation", ["flatten", "rebase", "commit"])
def test_killed_at_any_moment_the_guest_loses_nothing(operation, tmp_path):
    path, below = tmp_path / "disk.qcow2", tmp_path / "disk.qcow2.below"
    model = mixed(path, size=24 * MIB)
    (tmp_path / "new").write_bytes(patterned(3, 20 * MIB, 64 * KIB))
    call = {
        "flatten": "flatten(path)",
        "rebase": "rebase(path, 'new', backing_format='raw')",
        "commit": "commit(path)",
    }[operation]
    code = (
        "import sys\n"
        "from wirt.image.commit import commit\n"
        "from wirt.image.rebase import flatten, rebase\n"
        "path = sys.argv[1]\n"
        "print('ready', flush=True)\n"
        f"{call}\n"
    )
    keep = tmp_path / "keep"
    keep.mkdir()
    for file in (path, below):
        shutil.copy(file, keep)
    seed = random.randrange(1 << 30)
    dice = random.Random(seed)
    for _ in range(15):
        for file in (path, below):
            shutil.copy(keep / file.name, file)
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        child.stdout.readline()
        time.sleep(dice.uniform(0, 0.25))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert content(path) == model, f"seed {seed}"
        for file in (path, below):
            qemu_img("check", file, ok=(0, 3))
