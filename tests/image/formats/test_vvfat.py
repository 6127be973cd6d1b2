"""A directory as a FAT disk: mtools and fsck.fat judge it, qemu-io writes into it."""

import os
import random
import subprocess
import sys
from contextlib import suppress
from itertools import pairwise

import pytest

from tests.image.formats.support import read_all
from wirt.errors import (
    CorruptImage,
    ImageAccessDenied,
    ImageIoError,
    UnsupportedImage,
    UsageError,
)
from wirt.image.base import ExtentKind
from wirt.image.formats.vvfat import apply_changes, changes
from wirt.image.formats.vvfat.format import parse_name
from wirt.image.open import open_image

MIB = 1 << 20
pytestmark = [pytest.mark.needs_tool("mtype"), pytest.mark.needs_tool("fsck.fat")]

FILES = {
    "README.TXT": b"upper case, 8.3\n",
    "lower.txt": b"lower case\n",
    "empty": b"",
    "a much longer name than eight.three": bytes(range(256)) * 300,
    "Grüße.txt": b"umlaut\n",
    "thirteen-char": b"13",
    "deep/er/file.bin": os.urandom(70_000),
    "deep/.hidden": b"dot",
    "many/longername1": b"1",
    "many/longername2": b"2",
    "many/longername3": b"3",
}
NAMES = ["fat:", "fat:12:", "fat:16:", "fat:32:", "fat:floppy:"]


@pytest.fixture
def directory(tmp_path):
    top = tmp_path / "shared"
    for name, content in FILES.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (top / "protected").write_bytes(b"ro")
    (top / "protected").chmod(0o444)
    return top


def volume_file(image, tmp_path):
    """Write the volume, without the partition table, into a file for mtools."""
    start = image.layout.start
    size = image.layout.volume.sectors * 512
    path = tmp_path / "volume"
    with path.open("wb") as file:
        for extent in image.extents(start, size):
            if extent.kind is ExtentKind.DATA:
                file.seek(extent.offset - start)
                file.write(image.pread(extent.offset, extent.length))
        file.truncate(size)
    return path


def read_back(volume, name):
    done = subprocess.run(
        ["mtype", "-i", volume, f"::{name}"], check=True, capture_output=True, timeout=600,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    return done.stdout


def sound(volume):
    done = subprocess.run(["fsck.fat", "-n", volume], check=False, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("prefix", NAMES)
def test_mtools_reads_every_file_and_fsck_finds_nothing(prefix, directory, tmp_path):
    with open_image(f"{prefix}{directory}") as image:
        volume = volume_file(image, tmp_path)
        assert image.info().specific["files"] == len(FILES) + 1
    sound(volume)
    for name, content in FILES.items():
        assert read_back(volume, name) == content, name
    attributes = subprocess.run(
        ["mattrib", "-i", volume, "::protected"], capture_output=True, timeout=600, check=True
    )
    assert b"R" in attributes.stdout.split(b"::")[0]


@pytest.mark.parametrize("prefix", ["fat:", "fat:32:"])
def test_the_partition_is_where_the_table_says(prefix, directory, tmp_path):
    with open_image(f"{prefix}{directory}") as image:
        disk = tmp_path / "disk"
        disk.write_bytes(read_all(image))
        bits = image.layout.volume.bits
    listing = subprocess.run(
        ["sfdisk", "--json", disk], check=True, capture_output=True, timeout=600, text=True
    ).stdout
    assert '"start": 63' in listing
    assert f'"type": "{"c" if bits == 32 else "6"}"' in listing


def test_reading_in_pieces_is_reading_at_once(directory):
    with open_image(f"fat:{directory}") as image:
        whole = read_all(image)
        pieces = [
            image.pread(start, min(123_456, len(whole) - start))
            for start in range(0, len(whole), 123_456)
        ]
        assert b"".join(pieces) == whole
        runs = list(image.extents(0, image.virtual_size))
        assert runs[0].offset == 0
        assert runs[-1].end == image.virtual_size
        assert all(one.end == two.offset for one, two in pairwise(runs))


def test_many_files_get_different_short_names(tmp_path):
    top = tmp_path / "top"
    (top / "sub").mkdir(parents=True)
    for number in range(700):
        (top / "sub" / f"a long name with number {number}.text").write_bytes(b"%d" % number)
    with open_image(f"fat:{top}") as image:
        volume = volume_file(image, tmp_path)
    sound(volume)
    assert read_back(volume, "sub/a long name with number 699.text") == b"699"


def test_files_that_need_more_get_a_larger_disk(tmp_path):
    top = tmp_path / "top"
    top.mkdir()
    with (top / "large").open("wb") as file:
        file.truncate(3 << 30)
    with open_image(f"fat:{top}") as image:
        assert image.layout.volume.bits == 32
        assert image.virtual_size > 3 << 30
        assert image.pread(image.virtual_size - 512, 512) == bytes(512)


def write_with_mtools(image, tmp_path, *commands):
    """Let mtools change a copy of the volume, then write what changed into the image."""
    volume = volume_file(image, tmp_path)
    before = tmp_path / "before"
    subprocess.run(["cp", "--sparse=always", volume, before], check=True)
    for command in commands:
        subprocess.run(
            [command[0], "-i", volume, *command[1:]], check=True, capture_output=True, timeout=600,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
    with volume.open("rb") as new, before.open("rb") as old:
        for start in range(0, volume.stat().st_size, 65536):
            one, two = new.read(65536), old.read(65536)
            if one != two:
                image.pwrite(image.layout.start + start, one)


@pytest.mark.parametrize("prefix", ["fat:rw:", "fat:32:rw:", "fat:12:rw:"])
def test_what_a_guest_changed_comes_back_when_asked(prefix, directory, tmp_path):
    new = tmp_path / "new file with a long name.txt"
    new.write_bytes(os.urandom(30_000))
    (tmp_path / "lower.txt").write_bytes(b"changed")
    inode = (directory / "README.TXT").stat().st_ino
    with open_image(f"{prefix}{directory}", writable=True) as image:
        write_with_mtools(
            image,
            tmp_path,
            ("mcopy", new, "::deep"),
            ("mcopy", "-o", tmp_path / "lower.txt", "::lower.txt"),
            ("mdel", "::many/longername2"),
            ("mmd", "::fresh"),
            ("mmove", "::deep/er/file.bin", "::fresh/moved to here.bin"),
        )
        assert (directory / "lower.txt").read_bytes() == FILES["lower.txt"]
        seen = changes(image)
        assert seen == apply_changes(image)
    assert set(seen.added) == {f"deep/{new.name}", "fresh", "fresh/moved to here.bin"}
    assert seen.modified == ("lower.txt",)
    assert set(seen.removed) == {"many/longername2", "deep/er/file.bin"}
    assert (directory / "deep" / new.name).read_bytes() == new.read_bytes()
    assert (directory / "lower.txt").read_bytes() == b"changed"
    assert not (directory / "many/longername2").exists()
    assert (directory / "fresh/moved to here.bin").read_bytes() == FILES["deep/er/file.bin"]
    assert (directory / "README.TXT").stat().st_ino == inode
    assert (directory / "protected").stat().st_mode & 0o777 == 0o444
    assert [path.name for path in tmp_path.iterdir() if "wirt" in path.name] == []
    with open_image(f"fat:{directory}") as image:
        sound(volume_file(image, tmp_path))


def test_without_asking_nothing_comes_back(directory, tmp_path):
    with open_image(f"fat:rw:{directory}", writable=True) as image:
        write_with_mtools(image, tmp_path, ("mdel", "::README.TXT"))
        assert changes(image).removed == ("README.TXT",)
    assert (directory / "README.TXT").exists()


def test_an_unchanged_disk_changes_nothing(directory):
    before = directory.stat().st_ino
    with open_image(f"fat:rw:{directory}", writable=True) as image:
        image.pwrite(0, image.pread(0, MIB))
        assert image.changed
        assert not apply_changes(image)
    assert directory.stat().st_ino == before


def test_what_fat_does_not_know_stays(directory, tmp_path):
    (directory / "link").symlink_to("README.TXT")
    with open_image(f"fat:rw:{directory}", writable=True) as image:
        assert image.info().specific["left-out"] == ["link"]
        write_with_mtools(image, tmp_path, ("mdel", "::README.TXT"))
        apply_changes(image)
    assert os.readlink(directory / "link") == "README.TXT"


def test_changes_of_the_host_are_not_overwritten(directory, tmp_path):
    with open_image(f"fat:rw:{directory}", writable=True) as image:
        write_with_mtools(image, tmp_path, ("mdel", "::README.TXT"))
        (directory / "later").write_bytes(b"by the host")
        with pytest.raises(UnsupportedImage, match="changed on the host"):
            apply_changes(image)
    assert (directory / "README.TXT").exists()
    assert (directory / "later").exists()


def test_a_broken_file_system_brings_nothing_back(directory, tmp_path):
    """Whatever a guest writes: the declared errors, and the directory as it was."""
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    for seed in range(60):
        rng = random.Random(seed)
        with open_image(f"fat:12:rw:{directory}", writable=True) as image:
            for _ in range(rng.randint(1, 6)):
                place = image.layout.start + rng.choice((0, 512, 1024, 6 * 1024, 20 * 1024))
                place += rng.randrange(4096)
                image.pwrite(place, rng.randbytes(rng.choice((1, 2, 32, 512))))
            with suppress(CorruptImage):
                changes(image)
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


def test_a_chain_that_returns_to_itself_is_seen(directory):
    with open_image(f"fat:16:rw:{directory}", writable=True) as image:
        node = next(n for n in image.tree.top.walk() if n.path == "deep/er/file.bin")
        table = image.layout.start + image.layout.volume.reserved * 512
        image.pwrite(table + 2 * (node.first + node.count - 1), node.first.to_bytes(2, "little"))
        with pytest.raises(CorruptImage, match="shares clusters"):
            apply_changes(image)


@pytest.mark.parametrize("names", [("a", "A"), ("q?",), ("end.",)])
def test_names_that_fat_cannot_hold_are_refused(names, tmp_path):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UnsupportedImage):
        open_image(f"fat:{tmp_path}")


@pytest.mark.parametrize("content", [b"other", b"LOWER CASE\n"], ids=["length", "time"])
def test_a_file_that_changes_while_it_is_shown_is_told(content, directory):
    path = directory / "lower.txt"
    os.utime(path, (1_700_000_000, 1_700_000_000))
    with open_image(f"fat:{directory}") as image:
        path.write_bytes(content)
        if len(content) != len(FILES["lower.txt"]):
            os.utime(path, (1_700_000_000, 1_700_000_000))
        with pytest.raises(ImageIoError, match="changed"):
            read_all(image)


def test_a_floppy_that_is_too_small_is_refused(tmp_path):
    (tmp_path / "large").write_bytes(bytes(2 * MIB))
    with pytest.raises(UnsupportedImage, match="KiB"):
        open_image(f"fat:floppy:{tmp_path}")


def test_names_are_read_as_qemu_reads_them():
    name = parse_name("fat:floppy:rw:label=X:/a:b")
    assert (name.directory, name.floppy, name.writable, name.label) == ("/a:b", True, True, "X")
    assert parse_name("fat:32:d").bits == 32
    with pytest.raises(UsageError):
        parse_name("fat:rw:")


def test_writing_needs_rw(directory):
    with pytest.raises(ImageAccessDenied, match="read-only"):
        open_image(f"fat:{directory}", writable=True)
    with pytest.raises(ImageIoError, match="no such directory"):
        open_image("fat:/nonexistent/x")


def start_serving(directory, socket, *words):
    server = subprocess.Popen(
        [sys.executable, "-m", "wirt", "img", "serve", "--unix", socket, *words,
         f"fat:32:rw:{directory}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert "nbd+unix" in server.stdout.readline()
    return server


@pytest.mark.needs_tool("nbdcopy")
def test_a_served_directory_gets_its_changes_back_when_asked(directory, tmp_path):
    """A client takes the disk, mtools change it, it is copied back: as a guest would write."""
    for words in ((), ("--write-back",)):
        server = start_serving(directory, tmp_path / "s", *words, "--persistent")
        uri = f"nbd+unix:///?socket={tmp_path}/s"
        copy = tmp_path / "copy"
        subprocess.run(["nbdcopy", uri, copy], check=True, timeout=600)
        command = ["mdel", "-i", f"{copy}@@32256", "::README.TXT"]
        subprocess.run(command, check=True, capture_output=True, timeout=600)
        subprocess.run(["nbdcopy", copy, uri], check=True, timeout=600)
        server.terminate()
        said, warned = server.communicate(timeout=600)
        assert server.returncode == 0, warned
        assert (directory / "README.TXT").exists() == (not words)
        assert said.splitlines() == (["gone: README.TXT"] if words else [])
        assert ("forgotten" in warned) == (not words)
