"""Block devices: the bytes of raw, the sectors of the device, and nobody else's meanwhile."""

import os
import random
import subprocess
from contextlib import contextmanager

import pytest

from tests.image.formats.support import MIB, opened, read_all
from tests.image.storage.peers import wait_until
from wirt.cli.main import main
from wirt.errors import ImageInUse, ImageIoError, NoMedium, NotThisFormat, UnsupportedImage
from wirt.image import eject as ejecting
from wirt.image.convert import ConvertSettings, convert
from wirt.image.eject import close_tray, eject
from wirt.image.storage import drive


@pytest.fixture
def loop(tmp_path):
    """Attach a file to a loop device; return the device's path and the file's."""
    file = tmp_path / "loop.raw"
    with file.open("wb") as made:
        made.truncate(8 * MIB)
    words = ["losetup", "-f", "--show", str(file)]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=600)
    if done.returncode:
        pytest.skip(f"loop devices cannot be had here: {done.stderr}")
    device = done.stdout.strip()
    try:
        yield device, file
    finally:
        subprocess.run(["losetup", "-d", device], check=True, timeout=600)


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
    assert main(["img", "resize", "--format", "host_device", device, "1M"]) == 22
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
    subprocess.run(["mkfs.ext4", "-q", device], check=True, timeout=600)
    with mounted(device, place):
        for name in ("host_device", "raw"):
            with pytest.raises(ImageInUse, match="mounted"):
                opened(device, name, writable=True)
        with opened(device, "host_device") as image:
            assert image.pread(1080, 2) == b"\x53\xef"
    wait_until(lambda: is_free(device))
    opened(device, "host_device", writable=True).close()


@contextmanager
def mounted(device, place):
    """Mount in a namespace of its own: one that somebody makes meanwhile would keep the mount."""
    words = ["unshare", "--mount", "sh", "-c", 'mount "$0" "$1" && echo mounted && read -r _']
    process = subprocess.Popen(
        [*words, device, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        if process.stdout.readline() != b"mounted\n":
            pytest.skip("nothing can be mounted here")
        yield
    finally:
        process.communicate()


def is_free(device):
    try:
        os.close(os.open(device, os.O_RDWR | os.O_EXCL))
    except OSError:
        return False
    return True


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


@pytest.mark.needs_root
def test_what_cannot_be_ejected_is_said(loop, tmp_path):
    with pytest.raises(UnsupportedImage, match="cannot eject"):
        eject(loop[0])
    with pytest.raises(UnsupportedImage, match="close its tray"):
        close_tray(loop[0])
    (tmp_path / "file").write_bytes(bytes(MIB))
    with pytest.raises(NotThisFormat, match="no drive"):
        eject(str(tmp_path / "file"))
    with pytest.raises(ImageIoError, match="No such file"):
        eject("/dev/sr99")
    with opened(loop[0], "host_device"), pytest.raises(ImageInUse):
        eject(loop[0])


class CdDrive:
    """The answers of a drive to ioctls, and what it was asked."""

    def __init__(self, statuses, disc=101, able=7):
        self._statuses = list(statuses)
        self._answers = {drive._DISC_STATUS: disc, ejecting._CAPABILITY: able}
        self.asked = []

    def __call__(self, _fd, request, _argument=0):
        self.asked.append(request)
        if request == drive._DRIVE_STATUS:
            return self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]
        return self._answers.get(request, 0)


@pytest.fixture
def answers(monkeypatch):
    def install(*statuses, **options):
        made = CdDrive(statuses, **options)
        monkeypatch.setattr(drive.fcntl, "ioctl", made)
        return made

    return install


@pytest.mark.parametrize(
    ("status", "disc", "tray", "inside"),
    [
        (2, 101, "open", "none"),
        (1, 101, "closed", "none"),
        (4, 100, "closed", "audio"),
        (4, 101, "closed", "data"),
        (4, 105, "closed", "audio and data"),
        (4, 0, "closed", ""),
        (0, 0, "closed", ""),
    ],
)
def test_a_cd_drive_says_what_is_in_it(answers, status, disc, tray, inside):
    answers(status, disc=disc)
    assert drive.cd_state(0) == drive.CdState(tray, inside)


def test_a_disc_that_was_just_put_in_is_waited_for(answers, monkeypatch):
    monkeypatch.setattr(drive, "_POLL_SECONDS", 0)
    asked = answers(3, 3, 4).asked
    assert drive.cd_state(0) == drive.CdState("closed", "data")
    assert asked.count(drive._DRIVE_STATUS) == 3


@pytest.mark.needs_root
@pytest.mark.parametrize(
    ("status", "words", "cure"),
    [(1, "no disc", "eject"), (2, "tray of the drive is open", "--close"), (3, "ready", "clean")],
)
def test_a_disc_that_is_not_there_is_said(loop, answers, monkeypatch, status, words, cure):
    monkeypatch.setattr(drive, "_READY_SECONDS", 0)
    answers(status)
    with pytest.raises(NoMedium, match=words) as raised:
        opened(loop[0])
    assert cure in raised.value.hint
    assert raised.value.path == loop[0]


@pytest.mark.needs_root
def test_a_door_is_unlocked_before_it_opens(loop, answers):
    asked = answers(2).asked
    assert eject(loop[0]) == drive.CdState("open", "none")
    assert asked[:2] == [ejecting._LOCK_DOOR, ejecting._EJECT]
    answers(4, able=2)
    with pytest.raises(UnsupportedImage, match="cannot close"):
        close_tray(loop[0])
