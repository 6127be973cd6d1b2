from __future__ import annotations

import gzip
import hashlib
import lzma
import struct
import tempfile
from pathlib import Path

import pytest
import zstandard

from wirt.catalog.image import Firmware, Kind
from wirt.catalog.pull import default_name, pull_image
from wirt.errors import (
    AmbiguousFormat,
    CorruptImage,
    HostError,
    ImageError,
    NotFound,
    OutOfBounds,
    UnsupportedImage,
    UsageError,
)
from wirt.image.create import create_image
from wirt.image.open import open_image

EFI_SYSTEM = bytes.fromhex("28732ac11ff8d211ba4b00a0c93ec93b")


def raw_disk(*, boot_code=b"\xeb\x63", gpt=()):
    disk = bytearray(2 << 20)
    disk[: len(boot_code)] = boot_code
    disk[510:512] = b"\x55\xaa"
    if gpt:
        disk[512:520] = b"EFI PART"
        struct.pack_into("<QII", disk, 512 + 72, 2, 128, 128)
        for index, kind in enumerate(gpt):
            disk[1024 + 128 * index : 1040 + 128 * index] = kind
    return bytes(disk)


def qcow2(*, size=1 << 30, first_bytes=b"", backing="", options=None):
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/disk.qcow2"
        create_image(path, "qcow2", size, backing=backing, backing_format="raw", options=options)
        if first_bytes:
            with open_image(path, format="qcow2", writable=True) as image:
                image.pwrite(0, first_bytes)
        return Path(path).read_bytes()


def test_a_file_with_its_checksum_becomes_an_image(catalog, tmp_path):
    source = tmp_path / "Cloud Image.raw"
    source.write_bytes(raw_disk())
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    image = pull_image(catalog, str(source), checksum=digest, user="debian")
    assert image.record.name == "cloud-image"
    assert image.record.kind is Kind.PULLED
    assert image.record.firmware is Firmware.BIOS
    assert (image.record.format, image.record.virtual_size) == ("raw", 2 << 20)
    assert image.record.user == "debian"
    assert digest in image.record.origin
    assert image.disk.read_bytes() == source.read_bytes()
    assert image.disk.stat().st_mode & 0o777 == 0o444
    assert catalog.find("cloud-image") == image


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_download_is_checked_by_the_list_beside_it(catalog, site, algorithm):
    content = qcow2()
    site.files["/d/disk.qcow2"] = content
    digest = hashlib.new(algorithm, content).hexdigest()
    site.files["/d/SUMS"] = f"{'0' * len(digest)}  other\n{digest} *disk.qcow2\n".encode()
    image = pull_image(catalog, site.address + "/d/disk.qcow2", checksum=site.address + "/d/SUMS")
    assert (image.record.format, image.record.virtual_size) == ("qcow2", 1 << 30)
    assert [path.name for path in catalog.root.iterdir()] == [image.directory.name]


def test_a_wrong_checksum_leaves_nothing(catalog, site):
    site.files["/disk.raw"] = raw_disk()
    with pytest.raises(CorruptImage, match="checksum does not match"):
        pull_image(catalog, site.address + "/disk.raw", checksum="ab" * 32)
    assert list(catalog.root.iterdir()) == []


def test_a_list_without_the_file_is_said_before_the_download(catalog, site):
    site.files["/disk.raw"] = raw_disk()
    site.files["/SUMS"] = b"nothing here\n"
    with pytest.raises(NotFound, match=r"does not name 'disk\.raw'"):
        pull_image(catalog, site.address + "/disk.raw", checksum=site.address + "/SUMS")
    assert [path for path, _ in site.requests] == ["/SUMS"]


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        ("gz", gzip.compress),
        ("xz", lzma.compress),
        ("zst", zstandard.ZstdCompressor().compress),
        ("gz", lambda data: gzip.compress(data[: 1 << 20]) + gzip.compress(data[1 << 20 :])),
    ],
    ids=["gzip", "xz", "zstd", "two gzip members"],
)
def test_compressed_images_are_unpacked_and_their_holes_kept(catalog, tmp_path, suffix, pack):
    source = tmp_path / f"disk.raw.{suffix}"
    source.write_bytes(pack(raw_disk()))
    image = pull_image(catalog, str(source))
    assert image.record.name == "disk"
    assert image.disk.read_bytes() == raw_disk()
    assert image.record.allocated_size < 1 << 20


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstandard.compress])
def test_a_small_file_that_unpacks_to_much_is_stopped(catalog, tmp_path, pack):
    source = tmp_path / "bomb"
    source.write_bytes(pack(raw_disk() + bytes(64 << 20)))
    with pytest.raises(OutOfBounds, match="unpacks to more than 16M"):
        pull_image(catalog, str(source), budget=16 << 20)
    assert list(catalog.root.iterdir()) == []


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstandard.compress])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_compressed_data_are_corrupt(catalog, tmp_path, pack, damage):
    import os

    data = bytearray(pack(raw_disk() + os.urandom(1 << 18)))
    if damage == "cut":
        del data[-20_000:]
    else:
        data[len(data) // 2] ^= 0xFF
        data[20:24] = b"\xff\xff\xff\xff"
    source = tmp_path / "disk"
    source.write_bytes(data)
    with pytest.raises(CorruptImage):
        pull_image(catalog, str(source), format="raw")
    assert list(catalog.root.iterdir()) == []


@pytest.mark.parametrize(
    ("boot_code", "gpt", "firmware"),
    [
        (b"", (EFI_SYSTEM,), Firmware.UEFI),
        (b"", (b"x" * 16, EFI_SYSTEM), Firmware.UEFI),
        (b"\xeb\x63", (EFI_SYSTEM,), Firmware.BIOS),
        (b"", (b"x" * 16,), Firmware.BIOS),
        (b"\xeb\x63", (), Firmware.BIOS),
    ],
)
def test_the_firmware_is_found_by_boot_code_and_partitions(
    catalog, tmp_path, boot_code, gpt, firmware
):
    source = tmp_path / "disk.raw"
    source.write_bytes(raw_disk(boot_code=boot_code, gpt=gpt))
    assert pull_image(catalog, str(source)).record.firmware is firmware
    forced = pull_image(catalog, str(source), name="forced", firmware=Firmware.UEFI)
    assert forced.record.firmware is Firmware.UEFI
    source.write_bytes(qcow2(first_bytes=raw_disk(boot_code=boot_code, gpt=gpt)))
    assert pull_image(catalog, str(source), name="packed").record.firmware is firmware


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"hello" * 1000, AmbiguousFormat),
        (b"", CorruptImage),
        (b"KDMV" + bytes(4000), CorruptImage),
        (qcow2(backing="/etc/hostname"), UnsupportedImage),
        (b"QFI\xfb\0\0\0\x09" + bytes(4000), ImageError),
        (qcow2(size=0), CorruptImage),
        (qcow2()[:50], ImageError),
    ],
)
def test_what_cannot_be_an_image_is_refused_and_leaves_nothing(catalog, tmp_path, content, error):
    source = tmp_path / "disk"
    source.write_bytes(content)
    with pytest.raises(error) as caught:
        pull_image(catalog, str(source))
    assert caught.value.path == str(source)
    assert list(catalog.root.iterdir()) == []


def test_a_file_without_a_sign_of_its_format_is_taken_when_it_is_named(catalog, tmp_path):
    source = tmp_path / "disk"
    source.write_bytes(b"hello" * 1000)
    image = pull_image(catalog, str(source), format="raw")
    assert image.record.virtual_size == 5120
    assert image.disk.stat().st_size == 5120


def test_the_same_image_twice_is_one_image(catalog, tmp_path):
    source = tmp_path / "disk.raw"
    source.write_bytes(raw_disk())
    assert pull_image(catalog, str(source)) == pull_image(catalog, str(source))
    assert len(catalog.images()) == 1


def test_a_missing_file_and_a_directory_are_named(catalog, tmp_path):
    with pytest.raises(NotFound, match="no file"):
        pull_image(catalog, str(tmp_path / "none"))
    with pytest.raises(HostError, match="not a regular file"):
        pull_image(catalog, str(tmp_path))


@pytest.mark.parametrize("name", ["../x", "-x", "a b", "x" * 81, "a\n", ".x"])
def test_hostile_names_are_refused(catalog, tmp_path, name):
    source = tmp_path / "disk.raw"
    source.write_bytes(raw_disk())
    with pytest.raises(UsageError, match="name of an image"):
        pull_image(catalog, str(source), name=name)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("debian-12-genericcloud-amd64.qcow2", "debian-12-genericcloud-amd64"),
        ("Disk Image.RAW.xz", "disk-image"),
        ("..", "image"),
        (".qcow2", "image"),
    ],
)
def test_an_image_is_called_after_its_file(file, name):
    assert default_name(file) == name
