"""Reading what QEMU wrote: named allocation shapes across features."""

import random
from array import array

import pytest

from tests.image.qcow2.support import Memory, open_image, qemu_img, qemu_io
from wirt.errors import CorruptImage, NotThisFormat, OutOfBounds, UnsupportedImage
from wirt.image.base import ExtentKind, OpenOptions
from wirt.image.formats.qcow2 import FORMAT, mapping
from wirt.image.formats.qcow2.l2 import (
    COMPRESSED,
    COPIED,
    OFFSET,
    PACKED,
    WITH_HOST,
    ZERO,
    Table,
)
from wirt.image.formats.qcow2.vector import table_runs

SIZE = 4 << 20
STEP = 256 << 10
SHAPES = {
    "empty": [],
    "in order": [0, 1, 2, 3],
    "reversed": [3, 2, 1, 0],
    "hole first": [2, 3],
    "hole between": [0, 3, 9],
    "swapped": [1, 0, 3, 2],
}
FEATURES = {
    "v2": "compat=0.10",
    "v3": "compat=1.1",
    "512": "cluster_size=512",
    "2M": "cluster_size=2M",
    "extended": "extended_l2=on",
    "extended 16k": "extended_l2=on,cluster_size=16k",
    "refcount1": "refcount_bits=1",
    "refcount64": "refcount_bits=64",
    "data file": "data_file=d.raw",
    "metadata": "preallocation=metadata",
}


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
def test_the_whole_disk_reads_as_qemu_wrote_it(tmp_path, shape, features):
    path, model = tmp_path / "a.qcow2", bytearray(SIZE)
    qemu_img("create", "-q", "-f", "qcow2", "-o", features, path, SIZE)
    commands = []
    for number, place in enumerate(shape, 1):
        commands.append(f"write -P {number} {place * STEP} {STEP - 512}")
        model[place * STEP : (place + 1) * STEP - 512] = bytes([number]) * (STEP - 512)
    commands.append(f"write -z {5 * STEP} {STEP}")
    qemu_io(path, *commands)
    with open_image(path) as image:
        assert image.pread(0, SIZE) == model
        assert image.pread(STEP - 1000, 2000) == model[STEP - 1000 : STEP + 1000]


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("cluster", ["512", "4096", "65536", "2M"])
@pytest.mark.parametrize(
    "method", ["zlib", "zstd", "extended_l2=on"], ids=["zlib", "zstd", "extended"]
)
def test_compressed_clusters_mixed_with_others_read_right(tmp_path, cluster, method):
    if "extended" in method and int(cluster.replace("M", "000000")) < 16384:
        pytest.skip("extended L2 entries need larger clusters")
    rng = random.Random(cluster)
    words = [b"wirt", b"qcow", b"zero", bytes(64)]
    model = b"".join(rng.choice(words) * rng.randrange(1, 40) for _ in range(40000))
    model = (rng.randbytes(STEP) + model)[: 5 << 20]
    model += bytes((5 << 20) - len(model))
    raw, path = tmp_path / "a.raw", tmp_path / "a.qcow2"
    raw.write_bytes(model)
    option = method if "=" in method else f"compression_type={method}"
    option += f",cluster_size={cluster}"
    qemu_img("convert", "-c", "-O", "qcow2", "-o", option, raw, path)
    qemu_io(path, f"write -P 7 {STEP} 70000")
    model = model[:STEP] + bytes([7]) * 70000 + model[STEP + 70000 :]
    with open_image(path) as image:
        assert image.pread(0, len(model)) == model
        assert any(extent.compressed for extent in image.extents(0, len(model)))


@pytest.mark.needs_qemu_img
def test_extents_tell_data_zero_and_hole_with_their_place(tmp_path):
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
    qemu_io(path, "write -P 1 0 128k", "write -z 256k 64k")
    with open_image(path) as image:
        extents = list(image.extents(0, SIZE))
        assert [(e.offset, e.length, e.kind) for e in extents] == [
            (0, 128 << 10, ExtentKind.DATA),
            (128 << 10, 128 << 10, ExtentKind.HOLE),
            (256 << 10, 64 << 10, ExtentKind.ZERO),
            (320 << 10, SIZE - (320 << 10), ExtentKind.HOLE),
        ]
        assert image.storage.pread(extents[0].storage_offset, 4) == b"\1\1\1\1"


def _merged(runs):
    """Join what goes on in state and place, as readers do."""
    merged = []
    for run in runs:
        last = merged[-1] if merged else None
        placed = run.kind in WITH_HOST
        joins = last and last.kind == run.kind and run.kind != PACKED
        if joins and (not placed or last.host + last.length == run.host):
            merged[-1] = last._replace(length=last.length + run.length)
        else:
            merged.append(run)
    return merged


@pytest.mark.needs_qemu_img
def test_the_vectorised_extents_equal_the_plain_ones(tmp_path, monkeypatch):
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, "32M")
    rng = random.Random(1)
    starts = [rng.randrange(60000) * 512 for _ in range(60)]
    qemu_io(path, *(f"write -P 3 {start} {rng.randrange(1, 20) * 512}" for start in starts))
    qemu_io(path, "write -z 1M 64k", "write -z -u 3M 1000k")
    with open_image(path) as image:
        plain = list(image._mapping.runs(0, 32 << 20))
        parts = [r for at in range(0, 32 << 20, 1 << 20) for r in image._mapping.runs(at, 1 << 20)]
        assert image.pread(0, 1 << 20)
        monkeypatch.setattr(mapping, "_VECTOR_CLUSTERS", 0)
        whole = list(image._mapping.runs(0, 32 << 20))
    assert whole == _merged(parts) == plain


def _entries(rng, count):
    """Return L2 entries in rows of every kind, some broken, some at the end of all offsets."""
    kinds = (0, COPIED, COPIED, ZERO, COPIED | ZERO, COMPRESSED)
    words = []
    while len(words) < count:
        flags, length = rng.choice(kinds), rng.choice((1, 2, 7, 8, 9, 31, 600))
        host = rng.choice((0, 1, 5000, (1 << 40) - rng.randrange(9))) << 16
        if host:
            row = [flags | host + (at << 16) & OFFSET for at in range(length)]
        else:
            row = [flags & (ZERO | COMPRESSED)] * length
        if rng.random() < 0.3:
            row[rng.randrange(length)] ^= rng.choice((COPIED, ZERO, 1 << 16))
        words += row
    return array("Q", words[:count])


@pytest.mark.parametrize("seed", range(20))
def test_clusters_in_a_row_are_found_as_numpy_finds_them(seed):
    rng = random.Random(seed)
    image = FORMAT.open(_image(), OpenOptions())
    size = 1 << 16
    words = _entries(rng, 8192)
    table = Table(0, words, fresh=False)
    for _ in range(20):
        start, stop = sorted(rng.randrange(8192 * size) for _ in range(2))
        found = list(image._mapping._cluster_runs(table, start, stop))
        assert _merged(found) == list(table_runs(words, image.header, start, stop))


def _image(**patches: tuple[int, bytes]) -> Memory:
    storage = Memory()
    FORMAT.create(storage, SIZE, {})
    for offset, data in patches.values():
        storage.pwrite(offset, data)
    return storage


@pytest.mark.parametrize(
    ("offset", "data", "error"),
    [
        (0, b"QFI\0", NotThisFormat),
        (4, b"\0\0\0\4", UnsupportedImage),
        (20, b"\0\0\0\x08", UnsupportedImage),
        (20, b"\0\0\0\x16", UnsupportedImage),
        (24, b"\xff", CorruptImage),
        (36, b"\0\0\0\0", CorruptImage),
        (36, b"\xff\xff\xff\xff", CorruptImage),
        (40, b"\0\0\0\0\0\0\0\1", CorruptImage),
        (56, b"\xff\xff", CorruptImage),
        (60, b"\xff\xff", CorruptImage),
        (72, b"\x80", UnsupportedImage),
        (99, b"\x07", CorruptImage),
        (103, b"\x01", CorruptImage),
        (104, b"\x09", UnsupportedImage),
        (8, b"\0\0\0\0\0\1\0\0", CorruptImage),
    ],
)
def test_an_impossible_header_is_refused(offset, data, error):
    with pytest.raises(error):
        FORMAT.open(_image(patch=(offset, data)), OpenOptions())


def test_an_unknown_feature_is_named_by_the_images_own_table():
    storage = _image(feature=(72, bytes(6) + b"\x80\0"))
    where = storage.data.index(b"dirty bit") - 1
    storage.pwrite(where, b"\x0ftime travel\0")
    with pytest.raises(UnsupportedImage, match="time travel"):
        FORMAT.open(storage, OpenOptions())


def test_a_truncated_header_is_not_a_qcow2():
    with pytest.raises(NotThisFormat):
        FORMAT.open(Memory(b"QFI\xfb\0\0\0\3"), OpenOptions())


def test_a_dirty_or_corrupt_image_is_read_but_not_written():
    for bit in (1, 2):
        storage = _image(feature=(72, bytes(7) + bytes([bit])))
        assert FORMAT.open(storage, OpenOptions()).pread(0, 512) == bytes(512)
        with pytest.raises(CorruptImage) as caught:
            FORMAT.open(storage, OpenOptions(writable=True))
        assert "check" in caught.value.hint


def test_reading_past_the_end_is_out_of_bounds():
    with pytest.raises(OutOfBounds):
        FORMAT.open(_image(), OpenOptions()).pread(SIZE - 1, 2)


def test_compressed_data_beyond_the_budget_is_refused():
    import zlib

    from wirt.image.base import Budget

    storage = _image()
    image = FORMAT.open(storage, OpenOptions(writable=True))
    packer = zlib.compressobj(wbits=-12)
    image.write_compressed(0, packer.compress(bytes(65536)) + packer.flush(), bytes(65536))
    image.flush()
    table = image.volume.mapping.table(0)
    entry = table.words[0]
    for slot in range(64):
        table.words[slot] = entry
    table.touch(0, 64)
    image.flush()
    small = Budget(expansion=1, expansion_floor=1 << 20)
    with pytest.raises(OutOfBounds, match="budget"):
        FORMAT.open(storage, OpenOptions(budget=small)).pread(0, SIZE)
