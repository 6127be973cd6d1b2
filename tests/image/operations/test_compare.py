"""Comparison, measuring, dd and bench: against qemu-img and plain bytes."""

import json
import random
import re
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from wirt.errors import ImageError, OutOfBounds, UnsupportedImage, UsageError
from wirt.image.bench import Requests, bench
from wirt.image.compare import compare
from wirt.image.convert import convert
from wirt.image.create import create_image
from wirt.image.dd import dd
from wirt.image.extents import chain_extents
from wirt.image.measure import measure

needs_qemu_img = pytest.mark.needs_qemu_img


def compared(first, second, **options):
    with opened(first) as one, opened(second) as other:
        return compare(one, other, **options)


def by_qemu(first, second, *options):
    """Return qemu-img's verdict as ours: (identical, offset)."""
    command = ["qemu-img", "compare", *options, str(first), str(second)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in {0, 1}, done.stderr
    offset = re.search(r"offset (\d+)", done.stdout, re.IGNORECASE)
    return done.returncode == 0, int(offset[1]) if offset else 0


@needs_qemu_img
@pytest.mark.parametrize("at", [None, 0, 3 * MIB + 1234, 6 * MIB - 1])
def test_the_first_difference_is_found_where_qemu_finds_it(at, tmp_path):
    path, other = tmp_path / "disk.qcow2", tmp_path / "other.raw"
    model = bytearray(mixed(path))
    if at is not None:
        model[at] ^= 1
    other.write_bytes(model)
    found = compared(path, other)
    assert (found.identical, found.offset) == by_qemu(path, other)
    assert found.identical == (at is None)


@needs_qemu_img
@pytest.mark.parametrize("tail", [bytes(MIB), bytes(MIB - 1) + b"x"])
@pytest.mark.parametrize("strict", [False, True])
def test_what_is_longer_must_end_in_zeros(tail, strict, tmp_path):
    short, long = tmp_path / "short", tmp_path / "long"
    data = bytes(patterned(1, MIB, 64 * KIB))
    short.write_bytes(data)
    long.write_bytes(data + tail)
    for first, second in ((short, long), (long, short)):
        found = compared(first, second, strict=strict)
        assert found.sizes_differ
        assert (found.identical, found.offset) == by_qemu(first, second, *["-s"] * strict)


@needs_qemu_img
def test_strict_also_looks_at_what_is_allocated(tmp_path):
    holes, zeros = tmp_path / "holes.qcow2", tmp_path / "zeros.qcow2"
    for path in (holes, zeros):
        create_image(str(path), "qcow2", MIB)
    with opened(zeros, writable=True) as image:
        image.pwrite(256 * KIB, bytes(64 * KIB))
    assert compared(holes, zeros).identical
    found = compared(holes, zeros, strict=True)
    # QEMU names an earlier offset: to it, a run that ends with the disk is another state.
    assert not by_qemu(holes, zeros, "-s")[0]
    assert (found.identical, found.offset, found.reason) == (False, 256 * KIB, "allocation")


def test_overlays_of_one_image_are_compared_without_reading_it(tmp_path, monkeypatch):
    base = tmp_path / "base"
    base.write_bytes(patterned(1, 4 * MIB, 64 * KIB))
    for name in ("a", "b"):
        create_image(str(tmp_path / name), "qcow2", 4 * MIB, backing="base", backing_format="raw")
    with opened(tmp_path / "a", writable=True) as image:
        image.pwrite(MIB, base.read_bytes()[MIB : MIB + 64 * KIB])
    from wirt.image.formats.qcow2.view import Qcow2View

    read = []
    plain = Qcow2View.pread_into
    monkeypatch.setattr(
        Qcow2View, "pread_into", lambda self, o, b: (read.append(len(b)), plain(self, o, b))[1]
    )
    assert compared(tmp_path / "a", tmp_path / "b").identical
    assert sum(read) == 2 * 64 * KIB


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 16),
    writes=st.lists(st.tuples(st.integers(0, 255), st.integers(1, 60)), max_size=6),
)
def test_compare_agrees_with_the_bytes(seed, writes, tmp_path_factory):
    directory = tmp_path_factory.mktemp("compare")
    first, second = directory / "first", directory / "second"
    model = bytes(patterned(seed, 256 * KIB, 4096))
    create_image(str(first), "qcow2", len(model), options={"cluster_size": "4k"})
    with opened(first, writable=True) as image:
        image.pwrite(0, model)
    changed = bytearray(model)
    for block, length in writes:
        changed[block * KIB : block * KIB + length] = bytes(length)
    second.write_bytes(changed)
    found = compared(first, second)
    assert found.identical == (bytes(changed) == model)
    if not found.identical:
        at = next(i for i in range(len(model)) if changed[i] != model[i])
        assert found.offset == at // 512 * 512


OPTIONS = [
    {},
    {"compat": "0.10"},
    {"cluster_size": "512"},
    {"cluster_size": "2M"},
    {"extended_l2": "on", "cluster_size": "128k"},
    {"refcount_bits": "64"},
    {"preallocation": "falloc"},
    {"preallocation": "metadata"},
]


@needs_qemu_img
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", [0, 512, 10 * MIB, 3 << 30, 5 << 40])
def test_new_images_measure_as_in_qemu(options, size):
    words = ["-o", ",".join(f"{k}={v}" for k, v in options.items())] if options else []
    command = ["qemu-img", "measure", "--output=json", "-O", "qcow2", *words, "--size", str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        with pytest.raises(ImageError):
            measure("qcow2", size=size, options=options)
        return
    theirs = json.loads(done.stdout)
    ours = measure("qcow2", size=size, options=options)
    assert (ours.required, ours.fully_allocated) == (theirs["required"], theirs["fully-allocated"])
    assert ours.bitmaps is None


@needs_qemu_img
@pytest.mark.parametrize("target", ["raw", "qcow2"])
@pytest.mark.parametrize("options", OPTIONS[:5], ids=str)
def test_images_measure_as_in_qemu(target, options, tmp_path):
    path = tmp_path / "disk.qcow2"
    mixed(path)
    qemu_img("bitmap", "--add", "-g", "512", path, "one")
    given_options = options if target == "qcow2" else {}
    words = ["-o", ",".join(f"{k}={v}" for k, v in given_options.items())] if given_options else []
    theirs = json.loads(qemu_img("measure", "--output=json", "-O", target, *words, path))
    with opened(path) as image:
        ours = measure(target, source=image, options=given_options)
    assert ours.required == theirs["required"]
    assert ours.fully_allocated == theirs["fully-allocated"]
    assert ours.bitmaps == theirs.get("bitmaps")


@needs_qemu_img
def test_what_was_measured_is_what_a_conversion_needs(tmp_path):
    path, target = tmp_path / "disk.qcow2", tmp_path / "target"
    mixed(path)
    with opened(path) as image:
        expected = measure("qcow2", source=image).required
        convert([image], str(target), "qcow2")
    assert target.stat().st_size <= expected


def test_other_formats_are_not_measured():
    with pytest.raises(UnsupportedImage):
        measure("vdi", size=MIB)
    with pytest.raises(UsageError):
        measure("qcow2", size=MIB, options={"nonsense": "1"})


@needs_qemu_img
@pytest.mark.parametrize(
    ("block", "count", "skip"),
    [(512, None, 0), (64 * KIB, 3, 0), (4096, 100, 7), (MIB, None, 2), (MIB, 2, 5), (1, 513, 1)],
)
def test_dd_copies_the_blocks_that_qemu_copies(block, count, skip, tmp_path):
    path = tmp_path / "disk.qcow2"
    model = mixed(path)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    with opened(path) as image:
        dd(image, str(ours), "raw", block_size=block, count=count, skip=skip)
    words = [f"if={path}", f"of={theirs}", f"bs={block}"]
    words += [f"count={count}"] if count is not None else []
    words += [f"skip={skip}"] if skip else []
    qemu_img("dd", "-O", "raw", *words)
    assert ours.read_bytes() == theirs.read_bytes()
    start = min(skip * block, len(model))
    end = len(model) if count is None else max(start, min(len(model), count * block))
    assert ours.read_bytes()[: end - start] == model[start:end]


@needs_qemu_img
def test_bench_sends_what_it_is_asked_to(tmp_path):
    path = tmp_path / "disk.qcow2"
    create_image(str(path), "qcow2", 4 * MIB)
    requests = Requests(count=64, size=64 * KIB, write=True, pattern=7, flush_interval=5, depth=4)
    with opened(path, writable=True) as image:
        assert bench(image, requests) > 0
    assert_identical(path, "qcow2", b"\7" * 4 * MIB)
    with opened(path) as image:
        assert bench(image, Requests(count=500, depth=1, step=8 * KIB)) > 0
        for wrong in (Requests(size=8 * MIB), Requests(offset=4 * MIB), Requests(offset=-1)):
            with pytest.raises(OutOfBounds):
                bench(image, wrong)
        with pytest.raises(UsageError):
            bench(image, Requests(count=0))


@needs_qemu_img
@pytest.mark.parametrize("options", [{}, {"cluster_size": "4k"}, {"compat": "0.10"}], ids=str)
def test_the_map_of_a_chain_is_that_of_qemu(options, tmp_path):
    path = tmp_path / "disk.qcow2"
    mixed(path, **options)
    theirs = [
        (e["start"], e["length"], e["depth"], e["data"], e["zero"], e["present"])
        for e in json.loads(qemu_img("map", "--output=json", path))
    ]
    with opened(path) as image:
        ours = [
            (e.offset, e.length, e.depth, e.kind.value == "data", e.kind.value != "data",
             e.kind.value != "hole")
            for e in chain_extents(image)
        ]  # fmt: skip
    assert _joined(ours) == _joined(theirs)


def _joined(rows):
    """Join neighbours that only differ in where they lie."""
    out = []
    for start, length, *state in rows:
        if out and out[-1][2:] == state:
            out[-1][1] += length
        else:
            out.append([start, length, *state])
    return out


def test_random_parts_of_a_disk_read_as_the_whole(tmp_path):
    from wirt.image.part import Part

    path = tmp_path / "disk.qcow2"
    model = mixed(path)
    dice = random.Random(5)
    with opened(path) as image:
        for _ in range(50):
            start = dice.randrange(len(model))
            end = dice.randrange(start, len(model) + 1)
            part = Part(image, start, end)
            assert part.pread(0, end - start) == model[start:end]
            assert sum(e.length for e in part.extents(0, end - start)) == end - start
            with pytest.raises(OutOfBounds):
                part.pread(end - start, 1)
    assert content(path) == model
