"""File systems that are read from images: by mke2fs and debugfs, replayed by e2fsck."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import zlib
from pathlib import Path

import pytest

from wirt.errors import ImageError, UnsupportedImage
from wirt.image.base import AllowLocalFiles
from wirt.image.create import create_image
from wirt.image.differences import BLOCK, common_layer, differences
from wirt.image.ext4.differences import file_differences
from wirt.image.ext4.volume import ROOT, Volume
from wirt.image.open import open_image
from wirt.image.part import Part
from wirt.image.partitions import partitions

pytestmark = [pytest.mark.needs_tool("mke2fs"), pytest.mark.needs_tool("debugfs"),
              pytest.mark.needs_tool("e2fsck")]  # fmt: skip

KINDS = {
    "ext4": ("-t", "ext4"),
    "ext4-1k": ("-t", "ext4", "-b", "1024", "-O", "^64bit"),
    "ext4-plain": ("-t", "ext4", "-b", "4096", "-O", "^metadata_csum,^flex_bg"),
    "ext3": ("-t", "ext3", "-b", "1024"),
    "ext2": ("-t", "ext2", "-b", "4096", "-I", "128"),
}
CHANGES = """rm /tree/gone
kill_file /etc/none
write {new} /tree/added
mkdir /tree/more
write {new} /tree/more/deep
symlink /tree/link-new /somewhere
sif /tree/rights mode 0100600
sif /tree/touched mtime 20200101
rm /tree/big
write {big} /tree/big
rm /tree/link
symlink /tree/link elsewhere
ea_set /tree/labelled user.colour red
"""
EXPECTED = {
    ("/tree/gone", "removed"), ("/tree/added", "added"), ("/tree/more", "added"),
    ("/tree/more/deep", "added"), ("/tree/link-new", "added"), ("/tree/rights", "attributes"),
    ("/tree/big", "changed"), ("/tree/link", "changed"), ("/tree/labelled", "attributes"),
}  # fmt: skip


def run(*words, stdin=""):
    done = subprocess.run(
        [str(word) for word in words], input=stdin, text=True, capture_output=True, check=False
    )
    assert done.returncode in {0, 1} or words[0] == "debugfs", done.stdout + done.stderr
    return done.stdout


def opened(path):
    return open_image(str(path), format="raw", force_share=True)


def changed(first, second):
    with opened(first) as one, opened(second) as other:
        found = list(file_differences(one, other, list(differences(one, other))))
    assert len(found) == len(set(found))
    return {(file.path, file.change) for file in found}


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """A file system, and the same after some changes."""
    where = tmp_path_factory.mktemp(request.param)
    tree = where / "files" / "tree"
    (tree / "sub").mkdir(parents=True)
    for name in ("gone", "rights", "touched", "labelled"):
        (tree / name).write_text(name)
    for number in range(300):  # more than one block of names
        (tree / "sub" / f"a file with a long name {number}").write_text(str(number))
    noise = random.Random(7).randbytes(3 << 20)
    (tree / "big").write_bytes(noise)
    (tree / "link").symlink_to("somewhere")
    with (tree / "sparse").open("wb") as file:
        file.truncate(40 << 20)
        file.seek(20 << 20)
        file.write(b"middle")
    (where / "new").write_text("new")
    (where / "newbig").write_bytes(noise[:-1] + b"!")
    first, second = where / "first.raw", where / "second.raw"
    run("mke2fs", "-q", *KINDS[request.param], "-d", where / "files", first, "24M")
    shutil.copyfile(first, second)
    commands = CHANGES.format(new=where / "new", big=where / "newbig")
    run("debugfs", "-w", "-f", "-", second, stdin=commands)
    run("e2fsck", "-fy", second)
    return first, second


def test_all_that_was_changed_is_named_and_nothing_else(pair):
    first, second = pair
    assert changed(first, second) == EXPECTED
    back = {"added": "removed", "removed": "added"}
    assert changed(second, first) == {(path, back.get(how, how)) for path, how in EXPECTED}
    assert changed(first, first) == set()


def test_every_file_is_found_with_its_contents(pair, tmp_path):
    first, _ = pair
    with opened(first) as image:
        volume = Volume(image)
        waiting, seen = [(b"", ROOT)], {}
        while waiting:
            path, number = waiting.pop()
            inode = volume.inode(number)
            for name, below in volume.entries(inode):
                inode = volume.inode(below)
                if inode.is_directory:
                    waiting.append((path + b"/" + name, below))
                elif inode.has_blocks and inode.size:
                    data = bytearray(inode.size)
                    for run_ in volume.runs(inode):
                        size = volume.blocks.size
                        piece = volume.blocks.read_run(run_.physical, run_.blocks)
                        data[run_.logical * size : run_.logical * size + len(piece)] = piece
                    seen[(path + b"/" + name).decode()] = zlib.crc32(bytes(data[: inode.size]))
    run("debugfs", "-R", f"rdump /tree {tmp_path}", first)
    assert len(seen) == 306
    for path, sum_ in seen.items():
        if path != "/lost+found":
            assert zlib.crc32((tmp_path / path[1:]).read_bytes()) == sum_, path


@pytest.mark.parametrize("options", ["", "-c"], ids=["plain", "checksums"])
def test_what_only_the_journal_has_is_seen_as_e2fsck_would_put_it(pair, options, tmp_path):
    first, second = pair
    features = run("dumpe2fs", "-h", first)
    if "has_journal" not in features or (options and "metadata_csum" not in features):
        return  # no kernel makes such a one
    with opened(first) as image:
        size = Volume(image).blocks.size
    journaled, replayed = tmp_path / "journaled.raw", tmp_path / "replayed.raw"
    for path in (journaled, replayed):
        shutil.copyfile(first, path)
    one, other = first.read_bytes(), second.read_bytes()
    blocks = [at // size for at in range(size, len(one), size)
              if one[at : at + size] != other[at : at + size]]  # fmt: skip
    old = tmp_path / "old"
    new = tmp_path / "new"
    new.write_bytes(b"".join(other[at * size : at * size + size] for at in blocks))
    old.write_bytes(bytes(size) * 2)
    numbers = ",".join(map(str, blocks))
    # First garbage for two of them, in a transaction of its own; one more is revoked later.
    unused = (len(one) // size) - 3
    commands = (
        f"jo {options}\njw -b {blocks[0]},{blocks[1]} {old}\njw -b {unused},{unused + 1} {old}\n"
        f"jw -r {unused},{unused + 1}\njw -b {numbers} {new}\njc\n"
    )
    run("debugfs", "-w", "-f", "-", journaled, stdin=commands)
    assert b"" != journaled.read_bytes() != one
    assert changed(first, journaled) == EXPECTED
    shutil.copyfile(journaled, replayed)
    run("e2fsck", "-fy", replayed)
    assert changed(journaled, replayed) == set()
    assert changed(second, replayed) == set()
    _damage_the_journal(first, journaled, tmp_path / "damaged.raw")


def _damage_the_journal(first, journaled, damaged):
    """Whatever it holds, it is read to an end."""
    whole = journaled.read_bytes()
    with opened(first) as image:
        volume = Volume(image)
        start = volume.runs(volume.inode(8))[0].physical * volume.blocks.size
    random_ = random.Random(5)
    for _ in range(8):
        data = bytearray(whole)
        for _ in range(12):
            at = start + random_.randrange(8) * volume.blocks.size + random_.randrange(64)
            data[at] = random_.choice((0, 1, 0xFF, random_.randrange(256)))
        damaged.write_bytes(data)
        with contextlib.suppress(ImageError):
            changed(first, damaged)


def test_a_damaged_file_system_raises_what_it_may_and_ends(pair, monkeypatch):
    first, second = pair
    monkeypatch.setattr("wirt.image.ext4.volume.SECONDS", 5.0)
    whole = first.read_bytes()
    spots = [at for at in range(1024, len(whole), 64) if any(whole[at : at + 64])]
    random_ = random.Random(11)
    damaged = first.with_name("damaged.raw")
    failed = 0
    for turn in range(60):
        data = bytearray(whole)
        for _ in range(40):
            at = random_.choice(spots[:400] if turn % 2 else spots) + random_.randrange(64)
            data[at] = random_.choice((0, 1, 0xFF, random_.randrange(256)))
        damaged.write_bytes(data)
        try:
            changed(damaged, second)
        except ImageError:
            failed += 1
    assert failed


def test_what_is_no_file_system_is_said(tmp_path):
    path = tmp_path / "x.raw"
    path.write_bytes(bytes(1 << 20))
    with opened(path) as image, pytest.raises(UnsupportedImage, match="no ext4"):
        Volume(image)


def test_what_both_disks_stand_on_is_not_read(tmp_path, monkeypatch):
    base = tmp_path / "base.raw"
    base.write_bytes(os.urandom(4 << 20))
    for name, below in (("one", base), ("two", base), ("three", tmp_path / "two")):
        create_image(str(tmp_path / name), "qcow2", 8 << 20, backing=str(below),
                     backing_format="raw" if below == base else "qcow2")  # fmt: skip
    gate = AllowLocalFiles()

    def at(name, **options):
        return open_image(str(tmp_path / name), format="qcow2", gate=gate, **options)

    with at("one", writable=True) as image:
        image.pwrite(1 << 20, base.read_bytes()[1 << 20 : (1 << 20) + 65536])  # the same again
        image.pwrite(2 << 20, b"different")
        image.pwrite(6 << 20, b"behind the base")
    with at("three", writable=True) as image:
        image.pwrite((3 << 20) + 5000, b"!")
    with at("one") as one, at("three") as three:
        assert common_layer(one, three) == (1, 2)
        read = []
        storage = type(one.backing.storage)
        plain = storage.pread

        def spying(self, offset, length):
            if self.name.endswith("base.raw"):
                read.append(length)
            return plain(self, offset, length)

        monkeypatch.setattr(storage, "pread", spying)
        found = list(differences(one, three))
        assert found == [(2 << 20, (2 << 20) + BLOCK), ((3 << 20) + BLOCK, (3 << 20) + 2 * BLOCK),
                         (6 << 20, (6 << 20) + BLOCK)]  # fmt: skip
        assert sum(read) <= 6 * 65536  # clusters that one side has of its own, and their edges
        assert list(differences(one, one)) == []


@pytest.mark.needs_tool("sfdisk")
@pytest.mark.parametrize("label", ["gpt", "dos"])
def test_partitions_are_found_as_sfdisk_made_them(label, tmp_path):
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    lines = [f"label: {label}", "size=8M", "size=8M"]
    lines += ["type=5, size=30M", "size=4M", "size=5M"] if label == "dos" else ["size=4M"]
    run("sfdisk", "-q", disk, stdin="\n".join(lines) + "\n")
    told = run("sfdisk", "-d", disk)
    expected = []
    for line in told.splitlines():
        if line.startswith(str(disk)) and "type=5" not in line:
            fields = dict(part.strip().split("=") for part in line.split(":", 1)[1].split(",")
                          if "=" in part)  # fmt: skip
            start, size = int(fields["start"]), int(fields["size"])
            number = int(line.split(" ", 1)[0].removeprefix(str(disk)))
            expected.append((number, start * 512, (start + size) * 512))
    with opened(disk) as image:
        assert [tuple(one) for one in partitions(image)] == expected
        Part(image, *expected[0][1:]).pread(0, 512)
    Path(disk).write_bytes(bytes(1 << 20))
    with opened(disk) as image:
        assert partitions(image) == []
