"""What is refused at the door: loops, long chains, ambiguity, budgets, files not asked for."""

import os
import random
import struct
from contextlib import suppress

import pytest

from wirt.errors import (
    AmbiguousFormat,
    CorruptImage,
    ImageAccessDenied,
    ImageError,
    ImageIoError,
    NotThisFormat,
    OutOfBounds,
    UsageError,
)
from wirt.image.base import AllowLocalFiles, Budget
from wirt.image.create import create_image
from wirt.image.gate import Neighbours
from wirt.image.open import open_image
from wirt.image.probe import claims, probe_file
from wirt.image.registry import FORMATS
from wirt.image.storage.file import FileStorage

MIB = 1 << 20


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def opened(path, **options):
    return open_image(path, gate=AllowLocalFiles(), **options)


def test_a_file_that_looks_like_two_formats_must_be_named(place):
    create_image("a.qcow2", "qcow2", MIB)
    create_image("b.vhd", "vpc", 4 * MIB, options={"subformat": "fixed"})
    with open("a.qcow2", "ab") as file:
        file.write((place / "b.vhd").read_bytes()[-512:])
    with FileStorage("a.qcow2") as storage:
        assert set(claims(storage)) == {"qcow2", "vpc"}
    with pytest.raises(AmbiguousFormat) as caught:
        opened("a.qcow2")
    assert "--format" in caught.value.hint
    with opened("a.qcow2", format="qcow2") as image:
        assert image.virtual_size == MIB


def test_no_format_claims_random_bytes_or_zeros(place):
    for seed in range(50):
        (place / "x").write_bytes(random.Random(seed).randbytes(70_000))
        assert probe_file("x") == "raw"
    for size in (0, 1, 511, 512, 65536):
        (place / "x").write_bytes(bytes(size))
        assert probe_file("x") == "raw"


def test_a_chain_that_comes_back_is_found_by_inode_whatever_the_names(place):
    for name, below in (("a", "b"), ("b", "./c"), ("c", "link")):
        create_image(name, "qcow2", MIB, backing=below, backing_format="qcow2")
    os.link("a", "hard")
    os.symlink("hard", "link")
    with pytest.raises(CorruptImage, match="comes back"):
        opened("a")
    create_image("own", "qcow2", MIB, backing="own", backing_format="qcow2")
    with pytest.raises(CorruptImage, match="comes back"):
        opened("own")


def test_a_chain_is_no_longer_than_its_budget(place):
    create_image("0", "qcow2", MIB)
    for number in range(1, 12):
        create_image(str(number), "qcow2", MIB, backing=str(number - 1), backing_format="qcow2")
    with opened("11") as image:
        layer, depth = image, 0
        while layer is not None:
            layer, depth = layer.backing, depth + 1
        assert depth == 12
    with pytest.raises(OutOfBounds, match="longer than 11"):
        opened("11", budget=Budget(chain_depth=11))


def test_budgets_of_time_and_metadata_hold_at_the_door(place):
    create_image("a.qcow2", "qcow2", 1 << 40)
    with pytest.raises(OutOfBounds, match="metadata"):
        opened("a.qcow2", budget=Budget(metadata_bytes=4096))
    with (
        opened("a.qcow2", budget=Budget(seconds=0)) as image,
        pytest.raises(OutOfBounds, match="time"),
    ):
        image.pread(0, 512)


@pytest.mark.parametrize("name", ["nbd:unix:/x", 'json:{"driver":"file"}', "http://x/y", "fat:/"])
def test_a_header_reaches_no_protocol(place, name):
    create_image("a.qcow2", "qcow2", MIB, backing=name, backing_format="raw")
    for gate in (AllowLocalFiles(), Neighbours(), Neighbours(["/"]), None):
        with pytest.raises(ImageAccessDenied):
            open_image("a.qcow2", gate=gate)


def test_what_is_no_file_is_no_image(place):
    os.mkfifo("pipe")
    for name in ("pipe", ".", "/dev/null"):
        with pytest.raises(NotThisFormat):
            opened(name, format="raw")
    with pytest.raises(ImageIoError):
        opened("absent")


@pytest.mark.parametrize("name", [one.name for one in FORMATS if one.name not in {"raw", "vvfat"}])
def test_a_cut_off_file_raises_nothing_but_image_errors(place, name):
    for data in (b"", b"\0" * 4, b"QFI\xfb\0\0\0\3", b"KDMV\1\0\0\0", struct.pack(">Q", 1) * 8):
        (place / "x").write_bytes(data)
        # A name may be refused too: some formats count it up.
        with suppress(ImageError, UsageError), opened("x", format=name) as image:
            image.info()
