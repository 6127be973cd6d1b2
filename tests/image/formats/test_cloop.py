"""cloop, against create_compressed_fs, extract_compressed_fs and qemu-img (version 2).

No program of today makes the other versions: a writer in this file does, with blocks packed
by lzop, lz4 and xz.
"""

import io
import lzma
import random
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from pathlib import Path

import pytest

from tests.image.formats.support import (
    MIB,
    by_qemu,
    chain_read,
    made,
    mutated,
    opened,
    read_all,
    sample,
    sample_is_as_qemu_reads_it,
)
from wirt.errors import CorruptImage, OutOfBounds, UnsupportedImage, UsageError
from wirt.image.base import Budget, ExtentKind
from wirt.image.convert import ConvertSettings, convert
from wirt.image.formats.cloop.lz4 import unpack_lz4
from wirt.image.formats.cloop.lzo import unpack_lzo
from wirt.image.open import open_image
from wirt.image.probe import probe_file


@pytest.mark.needs_qemu_img
def test_a_disk_made_by_others_reads_as_in_qemu(tmp_path):
    path = sample("simple-pattern.cloop", tmp_path)
    assert probe_file(str(path)) == "cloop"
    sample_is_as_qemu_reads_it(path, "cloop")


def packed(directory):
    raw = directory / "r.raw"
    data = random.Random(1).randbytes(MIB // 2) * 2 + bytes(MIB) + b"text" * (MIB // 4)
    raw.write_bytes(data)
    path = directory / "r.cloop"
    subprocess.run(
        ["create_compressed_fs", "-B", "65536", str(raw), str(path)],
        check=True, capture_output=True, timeout=600,
    )  # fmt: skip
    return path, data


@pytest.mark.needs_tool("create_compressed_fs")
def test_what_create_compressed_fs_packs_is_unpacked(tmp_path):
    path, data = packed(tmp_path)
    assert chain_read(path) == data
    chance = random.Random(2)
    with opened(path) as image:
        for _ in range(200):
            offset = chance.randrange(len(data))
            length = chance.randrange(min(200000, len(data) - offset))
            assert image.pread(offset, length) == data[offset : offset + length]


@pytest.mark.needs_tool("create_compressed_fs")
def test_damaged_disks_raise_nothing_but_image_errors(tmp_path):
    path, _ = packed(tmp_path)
    mutated(path, "cloop", tmp_path, head=600)


BLOCK = 65536


def content(blocks, seed=3):
    """Random, repeating, nearly empty and text blocks by turns."""
    dice = random.Random(seed)
    parts = []
    for number in range(blocks):
        word = dice.randbytes(dice.randrange(1, 5000))
        parts.append(
            (
                dice.randbytes(BLOCK),
                (word * BLOCK)[:BLOCK],
                bytes(BLOCK - 100) + dice.randbytes(100),
                (b"".join(b"line %d of text\n" % dice.randrange(99) for _ in range(5000)))[:BLOCK],
            )[number % 4]
        )
    return b"".join(parts)


def lzo(data):
    """One LZO1X block, out of what lzop packs."""
    done = subprocess.run(
        ["lzop", "-c", "-q", "--no-checksum"], input=data, check=True, capture_output=True
    )
    raw = io.BytesIO(done.stdout)
    raw.read(9 + 2 + 2 + 2 + 1 + 1)  # magic, versions, method, level
    (flags,) = struct.unpack(">I", raw.read(4))
    raw.read(12)  # mode, time
    raw.read(raw.read(1)[0] + 4)  # name, checksum
    plain, packed = struct.unpack(">II", raw.read(8))
    assert plain == len(data)
    assert not flags & 0x3
    return raw.read(packed) if packed < plain else None


def lz4(data):
    """One LZ4 block, out of the frame that lz4 makes."""
    done = subprocess.run(
        ["lz4", "-c", "-q", "-9", "--no-frame-crc"], input=data, check=True, capture_output=True
    )
    frame = done.stdout
    at = 7 + (8 if frame[4] & 8 else 0)
    (length,) = struct.unpack_from("<I", frame, at)
    assert struct.unpack_from("<I", frame, at + 4 + (length & 0x7FFFFFFF)) == (0,)
    return None if length >> 31 else frame[at + 4 : at + 4 + length]


PACKERS = {"zlib": zlib.compress, "plain": bytes, "xz": lzma.compress, "lz4": lz4, "lzo": lzo}


def blocks_of(data, names):
    """Pack each block as the next of ``names`` says, or not at all if it only grows."""
    out = []
    for number, at in enumerate(range(0, len(data), BLOCK)):
        name = names[number % len(names)]
        packed = PACKERS[name](data[at : at + BLOCK])
        out.append((name, packed) if packed is not None else ("plain", data[at : at + BLOCK]))
    return out


def offsets(start, blocks):
    places = [start]
    for _, packed in blocks:
        places.append(places[-1] + len(packed))
    return places


def head(version, count):
    return (b"#!/bin/sh\n#V%d.0 Format\ninsmod cloop.o file=$0\n" % version).ljust(
        128, b"\0"
    ) + struct.pack(">II", BLOCK, count)


def version_1(data, order="<Q"):
    blocks = blocks_of(data, ["zlib"])
    start = 136 + struct.calcsize(order) * (len(blocks) + 1)
    table = b"".join(struct.pack(order, place) for place in offsets(start, blocks))
    script = head(1, len(blocks))
    if order == ">I":  # before there were versions
        script = b"#!/bin/sh\ninsmod cloop.o file=$0 && mount\n".ljust(128, b"\0") + script[128:]
    return script + table + b"".join(packed for _, packed in blocks)


FLAGS_4 = {"zlib": 0, "plain": 1, "xz": 2, "lz4": 3, "lzo": 4}


def version_4(data, names, *, version=4, turned=False):
    blocks = blocks_of(data, names)
    start = 0 if turned else 136 + 8 * (len(blocks) + 1)
    flags = [FLAGS_4[name] for name, _ in blocks] + [0]
    places = offsets(start, blocks)
    table = b"".join(struct.pack(">Q", f << 60 | p) for f, p in zip(flags, places, strict=True))
    body = b"".join(packed for _, packed in blocks)
    script = head(version, len(blocks))
    return body + table + script if turned else script + table + body


FLAGS_3 = {"plain": 0, "zlib": 2, "lzo": 4, "xz": 8, "lz4": 16}


def version_3(data, names, size):
    blocks = blocks_of(data, names)
    body = b"".join(packed for _, packed in blocks)
    padded = body.ljust(-(-len(body) // 4096) * 4096, b"\0")
    index = struct.pack(">IIQ", len(blocks), BLOCK, size)
    index += b"".join(struct.pack(">Q", place) for place in offsets(0, blocks))
    index += b"".join(struct.pack(">I", FLAGS_3[name]) for name, _ in blocks)
    return padded + index + struct.pack(">QI8s", len(padded), 3, b"\nCLOOP3\n")


ALL = ["zlib", "plain", "xz", "lz4", "lzo"]
VERSIONS = {
    "1, little-endian": version_1,
    "1, big-endian": lambda data: version_1(data, ">Q"),
    "0.68, 32 bits": lambda data: version_1(data, ">I"),
    "2, turned": lambda data: version_4(data, ["zlib"], version=2, turned=True),
    "3": lambda data: version_3(data, ALL, len(data)),
    "4": lambda data: version_4(data, ALL),
    "4, turned": lambda data: version_4(data, ALL, turned=True),
}


@pytest.mark.needs_tool("lzop")
@pytest.mark.needs_tool("lz4")
@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_and_codec_is_read(version, tmp_path):
    data = content(11)
    path = tmp_path / "v.cloop"
    path.write_bytes(VERSIONS[version](data))
    assert probe_file(str(path)) == "cloop"
    chance = random.Random(5)
    with opened(path) as image:
        assert read_all(image) == data
        assert {run.kind for run in image.extents(0, len(data))} == {ExtentKind.DATA}
        for _ in range(50):
            offset = chance.randrange(len(data))
            length = chance.randrange(min(200_000, len(data) - offset))
            assert image.pread(offset, length) == data[offset : offset + length]
    mutated(path, "cloop", tmp_path, count=15, head=len(path.read_bytes()))


@pytest.mark.needs_tool("lzop")
@pytest.mark.needs_tool("lz4")
@pytest.mark.parametrize(
    ("pack", "unpack"), [(lzo, unpack_lzo), (lz4, unpack_lz4)], ids=["lzo", "lz4"]
)
def test_blocks_of_many_kinds_are_unpacked_and_broken_ones_refused(pack, unpack):
    chance = random.Random(8)
    shapes = [
        b"a" * 100_000, b"ab" * 40, b"x", bytes(3000) + b"y" * 9 + bytes(70_000),
        *(chance.randbytes(n) * 40 for n in (1, 3, 17, 300, 2100, 3000)),
        chance.randbytes(60) + b"q" * 30 + chance.randbytes(30_000) + b"q" * 30 + bytes(20),
        *(bytes(chance.choices(b"abcd", k=20_000)) for _ in range(3)),
        Path(sys.executable).resolve().read_bytes()[:200_000],
    ]  # fmt: skip
    for data in shapes:
        packed = pack(data)
        if packed is None:
            continue
        assert unpack(packed, len(data)) == data
        with pytest.raises(CorruptImage):
            unpack(packed, len(data) - 1)
        for _ in range(40):
            broken = bytearray(packed)
            broken[chance.randrange(len(broken))] = chance.randrange(256)
            del broken[chance.randrange(len(broken) // 2, len(broken) + 1) :]
            with suppress(CorruptImage):
                assert len(unpack(bytes(broken), len(data))) <= len(data)


def test_a_disk_of_version_3_ends_inside_its_last_block(tmp_path):
    data = content(4)
    path = tmp_path / "v3.cloop"
    size = 4 * BLOCK - 5000
    path.write_bytes(version_3(data[:size], ["zlib"], size))
    assert chain_read(path) == data[:size].ljust(-(-size // 512) * 512, b"\0")


@pytest.mark.needs_tool("extract_compressed_fs")
@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("compressed", [False, True])
def test_what_is_converted_into_a_cloop_is_what_others_extract(compressed, tmp_path):
    data = bytearray(content(24, seed=9))
    data[5 * BLOCK : 13 * BLOCK] = bytes(8 * BLOCK)
    data[15 * BLOCK + 100 : 18 * BLOCK - 7] = bytes(3 * BLOCK - 107)
    del data[-3000 // 512 * 512 :]
    raw, path = tmp_path / "r.raw", tmp_path / "c.cloop"
    raw.write_bytes(data)
    with open_image(str(raw), format="raw") as source:
        convert([source], str(path), "cloop", ConvertSettings(compressed=compressed))
    assert path.stat().st_size < len(data)
    expected = data.ljust(24 * BLOCK, b"\0")
    assert chain_read(path) == expected == by_qemu(path, "cloop", tmp_path)
    done = subprocess.run(["extract_compressed_fs", path, "-"], check=True, capture_output=True)
    assert done.stdout == expected
    with opened(path, writable=True) as image:
        assert not hasattr(image, "pwrite")


@pytest.mark.needs_qemu_img
def test_a_new_disk_is_zeros_and_is_written_once_from_its_start_on(tmp_path):
    path = made(tmp_path / "n.cloop", "cloop", 10 * BLOCK, block_size="4k")
    assert chain_read(path) == bytes(10 * BLOCK) == by_qemu(path, "cloop", tmp_path)
    with opened(path, writable=True) as image:
        image.pwrite(70_000, b"a" * 10_000)
        image.write_zeroes(78_000, 1000)
        image.pwrite(79_000, b"b" * 2000)
        image.pwrite(300_001, b"c")
        model = bytearray(10 * BLOCK)
        model[70_000:80_000] = b"a" * 10_000
        model[78_000:79_000] = bytes(1000)
        model[79_000:81_000] = b"b" * 2000
        model[300_001] = ord("c")
        assert read_all(image) == model
        with pytest.raises(UnsupportedImage, match="written once"):
            image.pwrite(0, b"again")
    assert chain_read(path) == model == by_qemu(path, "cloop", tmp_path)
    for wrong in ("0", "1000", "x", "1G", "-4k"):
        with pytest.raises(UsageError, match="block_size"):
            made(tmp_path / "w.cloop", "cloop", MIB, block_size=wrong)


def test_a_small_file_does_not_unfold_beyond_the_budget(tmp_path):
    path = made(tmp_path / "z.cloop", "cloop", 64 * MIB, block_size="1M")
    with pytest.raises(OutOfBounds, match="budget"):
        opened(path, budget=Budget(expansion=4, expansion_floor=MIB))
