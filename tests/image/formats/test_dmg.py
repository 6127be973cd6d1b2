"""Apple's images, against libmodi, dmg2img and qemu-img.

No program of Debian writes most of them; ``udif.py`` beside this file does. The reader has
been compared with libmodi over images of Mac OS X 10.8 too (compressed in every way, and
encrypted with both versions of the header), which cannot be part of the repository.
"""

import hashlib
import plistlib
import random
import struct
import subprocess
from itertools import islice

import pymodi
import pytest

from tests.image.formats import udif
from tests.image.formats.support import (
    MIB,
    chain_read,
    mutated,
    opened,
    read_all,
    sample,
    sample_is_as_qemu_reads_it,
)
from wirt.errors import CorruptImage, ImageAccessDenied, ImageError, OutOfBounds, UnsupportedImage
from wirt.image.base import ExtentKind
from wirt.image.formats.dmg.adc import unpack_adc
from wirt.image.formats.dmg.lzfse import unpack_lzfse
from wirt.image.open import open_image
from wirt.image.probe import probe_file

SECRET = b"correct horse"
KINDS = ["adc", "zlib", "bzip2", "lzfse", "lzma", "plain"]


def content(seed, size=MIB):
    """Random, repeating, and empty parts: 64 KiB each in turn."""
    dice = random.Random(seed)
    parts = []
    while sum(map(len, parts)) < size:
        word = dice.randbytes(dice.randrange(3, 3000))
        parts += [dice.randbytes(65536), (word * 65536)[:65536], bytes(65536)]
    return b"".join(parts)[:size]


def by_libmodi(path):
    handle = pymodi.handle()
    handle.open(str(path))
    data = handle.read_buffer(handle.get_media_size())
    handle.close()
    return data


def by_dmg2img(path):
    out = path.with_suffix(".by-dmg2img")
    subprocess.run(["dmg2img", "-s", path, out], check=True, capture_output=True, timeout=600)
    return out.read_bytes()


@pytest.mark.needs_qemu_img
def test_an_image_made_by_others_reads_as_in_qemu_and_libmodi(tmp_path):
    path = sample("simple-dmg.dmg", tmp_path)
    assert probe_file(str(path)) == "dmg"
    sample_is_as_qemu_reads_it(path, "dmg")
    assert chain_read(path) == by_libmodi(path)


@pytest.mark.needs_qemu_img
@pytest.mark.needs_tool("dmg2img")
@pytest.mark.parametrize("resources", [False, True], ids=["plist", "resource-fork"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_compression_reads_as_the_oracles_read_it(kind, resources, tmp_path):
    data = content(1, MIB // 2)
    path = tmp_path / "c.dmg"
    path.write_bytes(udif.udif(data, [(kind, 500)], resources=resources))
    assert probe_file(str(path)) == "dmg"
    assert chain_read(path) == data
    if kind in {"adc", "zlib", "bzip2"} and not resources:
        assert by_dmg2img(path) == data
    if kind in {"zlib", "plain"}:
        sample_is_as_qemu_reads_it(path, "dmg")
    if kind in {"adc", "zlib", "lzfse", "plain"} and not resources:
        # libmodi's wheel has no LZMA, refuses large bzip2 blocks, and takes the data fork to
        # begin at 0.
        path.write_bytes(udif.udif(data, [(kind, 500)], fork=b""))
        assert chain_read(path) == data == by_libmodi(path)


SHAPES = {
    "in order": {},
    "stored in another order": {"shuffled": random.Random(4)},
    "four partitions": {"partitions": 4},
    "four partitions in another order": {"partitions": 4, "shuffled": random.Random(5)},
    "data at the very start": {"fork": b""},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_one_read_goes_over_chunks_of_all_kinds(shape, tmp_path):
    data = bytearray(content(2, MIB))
    layout = [
        ("zlib", 65), ("zero", 40), ("plain", 33), ("unused", 7), ("adc", 90), ("lzma", 128),
        ("bzip2", 1), ("zero", 1), ("lzfse", 77), ("plain", 1),
    ]  # fmt: skip
    at, number = 0, 0
    while at < len(data):
        kind, count = layout[number % len(layout)]
        if kind in {"zero", "unused"}:
            data[at : at + count * 512] = bytes(len(data[at : at + count * 512]))
        at += count * 512
        number += 1
    path = tmp_path / "all.dmg"
    path.write_bytes(udif.udif(bytes(data), layout, **SHAPES[shape]))
    chance = random.Random(3)
    with opened(path) as image:
        assert read_all(image) == data
        kinds = {run.kind for run in image.extents(0, len(data))}
        assert kinds == {ExtentKind.DATA, ExtentKind.ZERO}
        for _ in range(20):
            offset = chance.randrange(len(data))
            length = chance.randrange(min(100_000, len(data) - offset))
            assert image.pread(offset, length) == data[offset : offset + length]


def test_what_no_chunk_holds_is_a_hole(tmp_path):
    data = content(6, 200 * 512)
    path = tmp_path / "holes.dmg"
    path.write_bytes(udif.udif(data, [("hole", 10), ("zlib", 20), ("hole", 5)], sectors=260))
    with opened(path) as image:
        assert image.virtual_size == 260 * 512
        model = bytearray(260 * 512)
        for run in image.extents(0, image.virtual_size):
            if run.kind is ExtentKind.DATA:
                model[run.offset : run.end] = data[run.offset : run.end]
            else:
                assert run.kind is ExtentKind.HOLE
        assert [run.length // 512 for run in image.extents(0, 35 * 512)] == [10, 20, 5]
        assert read_all(image) == model


@pytest.mark.parametrize("bits", [128, 256])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("inside", ["udif", "plain", "sparse"])
def test_an_encrypted_image_opens_with_its_passphrase_only(inside, version, bits, tmp_path):
    data = content(7, 300 * 512)
    plain = {
        "udif": lambda: udif.udif(data, [("zlib", 20), ("plain", 9)]),
        "plain": lambda: data,
        "sparse": lambda: udif.sparse_image(data, [18, 3, 0, *range(5, 18), 1, 2, 4]),
    }[inside]()
    make = {1: udif.encrypted_1, 2: udif.encrypted_2}[version]
    path = tmp_path / "e.dmg"
    path.write_bytes(make(plain, SECRET, bits=bits))
    assert probe_file(str(path)) == "dmg"
    with opened(path, secret=SECRET) as image:
        assert image.info().encrypted
        assert read_all(image) == data
        assert image.pread(5_001, 9_000) == data[5_001:14_001]
    with opened(path) as image:
        assert image.info().encrypted
        with pytest.raises(ImageAccessDenied, match="encrypted"):
            image.pread(0, 512)
    with pytest.raises(ImageAccessDenied, match="passphrase"):
        opened(path, secret=b"wrong")


SPARSE = {
    "in order": list(range(40)),
    "reversed": list(range(39, -1, -1)),
    "empty": [],
    "hole first": list(range(20, 40)),
    "hole between": [0, 1, 2, 30, 31],
    "one swapped": [1, 0, *range(2, 40)],
}


@pytest.mark.parametrize("shape", SPARSE)
def test_a_sparse_image_reads_as_libmodi_reads_it(shape, tmp_path):
    data = content(8, 40 * 8192 - 1024)
    model = bytearray(len(data))
    for band in SPARSE[shape]:
        model[band * 8192 : (band + 1) * 8192] = data[band * 8192 : (band + 1) * 8192]
    path = tmp_path / "s.sparseimage"
    path.write_bytes(udif.sparse_image(data, SPARSE[shape]))
    assert probe_file(str(path)) == "sparseimage"
    assert chain_read(path) == model == by_libmodi(path)


def test_a_sparse_image_goes_on_in_further_tables(tmp_path):
    bands = list(range(3000))
    random.Random(9).shuffle(bands)
    data = content(9, 3000 * 512)
    path = tmp_path / "many.sparseimage"
    path.write_bytes(udif.sparse_image(data, bands[:2800], band=1))
    model = bytearray(len(data))
    for band in bands[:2800]:
        model[band * 512 : (band + 1) * 512] = data[band * 512 : (band + 1) * 512]
    assert chain_read(path) == model


def in_few_runs(path):
    """Return whether a disk that declares far more than it stores is looked through at once."""
    with opened(path) as image:
        runs = list(islice(image._runs(0, image.virtual_size), 20))
        return sum(run.length for run in runs) == image.virtual_size


def test_a_sparse_image_may_declare_a_million_times_what_it_stores(tmp_path):
    path = tmp_path / "huge.sparseimage"
    head = bytearray(udif.sparse_image(content(9, 3 * 512), [2, 0, 1], band=1))
    struct.pack_into(">Q", head, 28, 1 << 46)
    path.write_bytes(head)
    assert in_few_runs(path)


def bundle(directory, data, bands, *, size=8192, secret=None):
    """A sparse bundle that holds ``bands``; the last byte of each is left to be zeros."""
    path = directory / "b.sparsebundle"
    (path / "bands").mkdir(parents=True)
    values = {
        "CFBundleInfoDictionaryVersion": "6.0", "band-size": size, "size": len(data),
        "bundle-backingstore-version": 1,
        "diskimage-bundle-type": "com.apple.diskimage.sparsebundle",
    }  # fmt: skip
    (path / "Info.plist").write_bytes(plistlib.dumps(values))
    keys = (b"k" * 32, b"h" * 20)
    token = udif.encrypted_head(len(data), *keys, secret) if secret else b""
    (path / "token").write_bytes(token)
    model = bytearray(len(data))
    for band in bands:
        piece = data[band * size : (band + 1) * size]
        if not secret:
            piece = piece[:-1]
        model[band * size : band * size + len(piece)] = piece
        if secret:
            piece = udif.blocks(piece, *keys, 512, first=band * size // 512)
        (path / "bands" / f"{band:x}").write_bytes(piece)
    return path, model


def test_a_sparse_bundle_may_declare_a_million_times_what_it_stores(tmp_path):
    path, _ = bundle(tmp_path, content(9, 3 * 512), [0, 2], size=512)
    values = plistlib.loads((path / "Info.plist").read_bytes()) | {"size": 1 << 55}
    (path / "Info.plist").write_bytes(plistlib.dumps(values))
    assert in_few_runs(path)


@pytest.mark.parametrize("shape", SPARSE)
@pytest.mark.parametrize("secret", [None, SECRET], ids=["plain", "encrypted"])
def test_a_sparse_bundle_is_its_bands_one_behind_the_other(secret, shape, tmp_path):
    data = content(10, 40 * 8192 - 1024)
    path, model = bundle(tmp_path, data, SPARSE[shape], secret=secret)
    assert probe_file(str(path)) == "sparsebundle"
    chance = random.Random(11)
    with opened(path, secret=secret) as image:
        assert read_all(image) == model
        assert image.info().encrypted == bool(secret)
        for _ in range(50):
            offset = chance.randrange(len(data))
            length = chance.randrange(min(50_000, len(data) - offset))
            assert image.pread(offset, length) == model[offset : offset + length]
    with pytest.raises(ImageAccessDenied, match="not opened unasked"):
        open_image(str(path), secret=secret)
    if secret:
        with pytest.raises(ImageAccessDenied, match="passphrase"):
            opened(path, secret=b"wrong")
        with opened(path) as image:
            assert image.info().encrypted
            if SPARSE[shape]:
                with pytest.raises(ImageAccessDenied, match="encrypted"):
                    read_all(image)


def test_more_bands_than_may_be_open_at_a_time(tmp_path):
    data = content(12, 200 * 512)
    path, model = bundle(tmp_path, data, list(range(200)), size=512)
    with opened(path) as image:
        for band in random.Random(1).sample(range(200), 200):
            assert image.pread(band * 512, 512) == model[band * 512 : (band + 1) * 512]


def test_codes_that_look_back_too_far_are_refused():
    assert unpack_adc(b"\x80a\x08\x00", 6) == b"a" * 6
    assert unpack_adc(udif.adc(content(13, 200_000)), 200_000) == content(13, 200_000)
    for packed, length in ((b"\x08\x00", 5), (b"\x80a\x41\0\1", 6), (b"\x85ab", 6), (b"\x80", 1)):
        with pytest.raises(CorruptImage):
            unpack_adc(packed, length)


def test_an_lzfse_stream_that_makes_more_than_it_says_is_stopped():
    data = b"abcdefg" * 20_000
    packed = udif.lzfse.compress(data)
    assert packed[:4] == b"bvx2"
    assert unpack_lzfse(packed, len(data)) == data
    for said in (len(data) - 1, 1, 0):
        lying = packed[:4] + struct.pack("<I", said) + packed[8:]
        for wanted in {said, len(data)}:
            with pytest.raises(CorruptImage):
                unpack_lzfse(lying, wanted)
    with pytest.raises(CorruptImage):
        unpack_lzfse(packed[:-4] + packed[:-4] + b"bvx$", len(data))


@pytest.mark.parametrize("kind", ["zlib", "bzip2", "lzma", "lzfse", "adc"])
def test_a_chunk_that_unfolds_to_more_than_its_sectors_is_refused(kind, tmp_path):
    packed = udif.PACKERS[kind](bytes(4 * MIB))
    path = tmp_path / "bomb.dmg"
    entry = (udif.KINDS[kind], 0, 16, 0, len(packed))
    path.write_bytes(udif.assemble(packed, [udif.table(0, [entry])], 16))
    with opened(path) as image:
        if kind in {"zlib", "bzip2", "lzma"}:
            assert read_all(image) == bytes(16 * 512)  # it is never unfolded further
        else:
            with pytest.raises(CorruptImage):
                read_all(image)


def test_what_contradicts_itself_is_refused(tmp_path):
    def refused(kind, words, chunks, sectors=100, **options):
        path = tmp_path / "x.dmg"
        path.write_bytes(udif.assemble(b"x" * 4096, [udif.table(0, chunks)], sectors, **options))
        with pytest.raises(kind, match=words), opened(path) as image:
            read_all(image)

    refused(CorruptImage, "same sectors", [(1, 0, 4, 0, 2048), (1, 3, 4, 0, 2048)])
    refused(CorruptImage, "beyond the end", [(1, 0, 4, 1 << 40, 2048)])
    refused(CorruptImage, "beyond the end", [(udif.KINDS["zlib"], 0, 4, 0, 1 << 20)])
    refused(OutOfBounds, "compressed chunk", [(udif.KINDS["zlib"], 0, 1 << 20, 0, 2048)])
    refused(UnsupportedImage, "not known", [(0x80000009, 0, 4, 0, 2048)])
    refused(CorruptImage, "begins at sector", [(0, 1 << 62, 4, 0, 0)])


PLISTS = {
    "no plist": b"hello",
    "a list": plistlib.dumps([1]),
    "entities": b'<?xml version="1.0"?><!DOCTYPE p [<!ENTITY a "a">]><plist>&a;</plist>',
    "no tables": plistlib.dumps({"resource-fork": {"blkx": [{"Name": "x"}]}}),
    "stray tags": b"<plist><key>a</key></plist></dict>",
    "deep": b"<plist>" + b"<array>" * 50_000 + b"</array>" * 50_000 + b"</plist>",
}


@pytest.mark.parametrize("what", PLISTS)
def test_a_broken_property_list_is_a_broken_image(what, tmp_path):
    trailer = bytearray(512)
    struct.pack_into(">4sII", trailer, 0, b"koly", 4, 512)
    struct.pack_into(">QQ", trailer, 216, 0, len(PLISTS[what]))
    path = tmp_path / "p.dmg"
    path.write_bytes(PLISTS[what] + trailer)
    with pytest.raises(ImageError):
        opened(path)
    bundle_path, _ = bundle(tmp_path, bytes(8192), [0])
    (bundle_path / "Info.plist").write_bytes(PLISTS[what])
    with pytest.raises(ImageError):
        opened(bundle_path, "sparsebundle")


@pytest.mark.parametrize("resources", [False, True], ids=["plist", "resource-fork"])
def test_damaged_images_raise_nothing_but_image_errors(resources, tmp_path):
    data = content(14, 512 * 300)
    path = tmp_path / "m.dmg"
    layout = [(kind, 15) for kind in KINDS]
    path.write_bytes(udif.udif(data, layout, resources=resources, fork=b""))
    mutated(path, "dmg", tmp_path, head=len(path.read_bytes()))
    tail = len(path.read_bytes())
    small = tmp_path / "t.dmg"
    small.write_bytes(udif.udif(data[: 512 * 90], layout, resources=resources, fork=b""))
    mutated(small, "dmg", tmp_path, count=200, seed=8, head=tail)


@pytest.mark.parametrize("version", [1, 2])
def test_damaged_encrypted_images_raise_nothing_but_image_errors(version, tmp_path):
    data = content(15, 512 * 60)
    plain = udif.udif(data, [("zlib", 20)])
    make = {1: udif.encrypted_1, 2: udif.encrypted_2}[version]
    path = tmp_path / "e.dmg"
    path.write_bytes(make(plain, SECRET))
    mutated(path, "dmg", tmp_path, head=1500, secret=SECRET, count=150)


def test_damaged_sparse_images_raise_nothing_but_image_errors(tmp_path):
    path = tmp_path / "m.sparseimage"
    path.write_bytes(udif.sparse_image(content(16, 400 * 4096), list(range(300)), band=8))
    mutated(path, "sparseimage", tmp_path, head=1400, count=60)


def test_the_large_images_of_a_few_bytes_cost_nothing(tmp_path):
    path = tmp_path / "big.dmg"
    path.write_bytes(udif.assemble(b"", [udif.table(0, [(0, 0, 1 << 40, 0, 0)])], 1 << 40))
    with opened(path) as image:
        assert image.virtual_size == 512 << 40
        assert hashlib.sha256(image.pread(1 << 48, 512)).digest()
        assert len(list(image.extents(0, image.virtual_size))) == 1
