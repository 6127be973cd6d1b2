"""Block devices: the bytes of raw, the sectors of the device, and nobody else's meanwhile."""

import os
import random
import subprocess

import pytest

from tests.image.formats.support import MIB, opened, read_all
from wirt.errors import ImageInUse, ImageIoError, NotThisFormat, UnsupportedImage
from wirt.image.convert import ConvertSettings, convert
from wirt.image.formats import host_cdrom


@pytest.fixture
def loop(tmp_path):
    """Attach a file to a loop device; return the device's path and the file's."""
    file = tmp_path / "loop.raw"
    with file.open("wb") as made:
        made.truncate(8 * MIB)
    words = ["losetup", "-f", "--show", str(file)]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=60)
    if done.returncode:
        pytest.skip(f"loop devices cannot be had here: {done.stderr}")
    device = done.stdout.strip()
    try:
        yield device, file
    finally:
        subprocess.run(["losetup", "-d", device], check=True, timeout=60)


@pytest.mark.needs_root
def test_a_device_is_read_written_and_zeroed(loop):
    device, file = loop
    model = bytearray(8 * MIB)
    chance = random.Random(1)
    with opened(device, "host_device", writable=True) as image:
        assert image.virtual_size == 8 * MIB
        assert image.sector_size == 512
        assert image.info().specific["read-only"] is False
        for _ in range(30):
            at, length = chance.randrange(7 * MIB), chance.randrange(1, MIB)
            model[at : at + length] = piece = chance.randbytes(length)
            image.pwrite(at, piece)
            at, length = chance.randrange(7 * MIB), chance.choice([4096, 12345, 512, MIB])
            image.write_zeroes(at, length)
            model[at : at + length] = bytes(length)
        image.flush()
        assert read_all(image) == model
        with pytest.raises(UnsupportedImage, match="size"):
            image.resize(MIB)
    assert file.read_bytes() == model


@pytest.mark.needs_root
def test_sectors_are_zeroed_by_the_device_itself(loop, monkeypatch):
    device, file = loop
    with opened(device, "host_device", writable=True) as image:
        image.pwrite(0, b"x" * MIB)
        monkeypatch.setattr("wirt.image.storage.file._PUNCH_HOLE", 1 << 10)  # unknown: refused
        assert image.storage.punch_hole(4096, 8192)
        assert not image.storage.punch_hole(4097, 100)
        image.flush()
    data = file.read_bytes()
    assert data[4096:12288] == bytes(8192)
    assert data[:4096] == b"x" * 4096
    assert data[12288:MIB] == b"x" * (MIB - 12288)


@pytest.mark.needs_root
@pytest.mark.needs_tool("mkfs.ext4")
def test_a_mounted_device_is_not_opened_for_writing(loop, tmp_path):
    device, _ = loop
    place = tmp_path / "mounted"
    place.mkdir()
    subprocess.run(["mkfs.ext4", "-q", device], check=True, timeout=60)
    done = subprocess.run(["mount", device, place], check=False, capture_output=True, timeout=60)
    if done.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        for name in ("host_device", "raw"):
            with pytest.raises(ImageInUse, match="mounted"):
                opened(device, name, writable=True)
        with opened(device, "host_device") as image:
            assert image.pread(1080, 2) == b"\x53\xef"
    finally:
        subprocess.run(["umount", place], check=True, timeout=60)
    opened(device, "host_device", writable=True).close()


@pytest.mark.needs_root
def test_convert_writes_into_a_device_and_reads_from_one(loop, tmp_path):
    device, file = loop
    source = tmp_path / "source.raw"
    source.write_bytes(os.urandom(MIB) + bytes(6 * MIB) + os.urandom(MIB))
    with opened(source, "raw") as image:
        convert([image], device, "host_device", ConvertSettings(into_existing=True))
    assert file.read_bytes() == source.read_bytes()
    with opened(device, "host_device") as image:
        convert([image], str(tmp_path / "copy.qcow2"), "qcow2")
    with opened(tmp_path / "copy.qcow2") as image:
        assert read_all(image) == source.read_bytes()


@pytest.mark.needs_root
@pytest.mark.parametrize("name", ["host_cdrom", "host_floppy"])
def test_another_kind_of_drive_is_refused(loop, name):
    with pytest.raises(NotThisFormat, match="drive"):
        opened(loop[0], name)


@pytest.mark.parametrize("name", ["host_device", "host_cdrom", "host_floppy"])
def test_a_file_is_no_device(tmp_path, name):
    (tmp_path / "file").write_bytes(bytes(MIB))
    with pytest.raises(NotThisFormat, match="block device"):
        opened(tmp_path / "file", name)


def test_a_disc_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setattr(host_cdrom.fcntl, "ioctl", lambda *_: 2)
    with pytest.raises(ImageIoError, match="tray is open"):
        host_cdrom.FORMAT.check(0)
