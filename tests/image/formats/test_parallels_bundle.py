"""Parallels' directories (``.hdd``). The oracle is dissect.hypervisor; no sample is at hand."""

import random
import shutil
import subprocess
import sys

import pytest

from tests.image.formats.support import MIB, by_qemu, exercised, made, opened, read_all
from wirt.errors import CorruptImage, ImageAccessDenied, ImageError, OutOfBounds
from wirt.image.base import AllowLocalFiles, Budget
from wirt.image.open import open_image
from wirt.image.probe import probe_file

TOP = "{5fbaabe3-6958-40ff-92a7-860e329aab41}"
NONE = "{00000000-0000-0000-0000-000000000000}"
OLDER = [f"{{aaaaaaaa-1111-4111-8111-00000000000{number}}}" for number in range(3)]
CLUSTER = MIB


def descriptor(storages, guids, *, top=""):
    """``storages`` are (start, end, [(guid, type, file)]) in sectors; ``guids`` from the top."""
    size = storages[-1][1]
    text = '<?xml version="1.0" encoding="UTF-8"?>\n<Parallels_disk_image Version="1.0">'
    text += f"<Disk_Parameters><Disk_size>{size}</Disk_size><Padding>0</Padding></Disk_Parameters>"
    text += "<StorageData>"
    for start, end, images in storages:
        text += f"<Storage><Start>{start}</Start><End>{end}</End><Blocksize>2048</Blocksize>"
        for guid, kind, file in images:
            text += f"<Image><GUID>{guid}</GUID><Type>{kind}</Type><File>{file}</File></Image>"
        text += "</Storage>"
    text += "</StorageData><Snapshots>"
    text += f"<TopGUID>{top}</TopGUID>" if top else ""
    for guid, parent in zip(guids, [*guids[1:], NONE], strict=True):
        text += f"<Shot><GUID>{guid}</GUID><ParentGUID>{parent}</ParentGUID></Shot>"
    return text + "</Snapshots></Parallels_disk_image>"


def layer(path, model, clusters, seed):
    """A Parallels image that holds only these clusters, allocated in this order."""
    made(path, "parallels", len(model))
    chance = random.Random(seed)
    with opened(path, "parallels", writable=True) as image:
        for cluster in clusters:
            start = cluster * CLUSTER
            part = chance.randbytes(min(CLUSTER, len(model) - start))
            image.pwrite(start, part)
            model[start : start + len(part)] = part


def bundle(directory, *, base="Compressed"):
    """Two storages of 5 and 3.5 MiB, each with a base and two snapshots above it."""
    path = directory / "disk.hdd"
    path.mkdir()
    guids = [TOP, OLDER[1], OLDER[0]]
    sizes = [5 * MIB, 3 * MIB + MIB // 2]
    model, storages, start = b"", [], 0
    orders = ([[4, 0, 2], [2, 3], [1]], [[0, 1, 2, 3], [], [3, 0]])
    for number, size in enumerate(sizes):
        part = bytearray(size)
        images = []
        for depth, clusters in enumerate(orders[number]):
            name = f"s{number}.{depth}.hds"
            if depth == 0 and base == "Plain":
                part[:] = random.Random(number).randbytes(size)
                (path / name).write_bytes(part)
            else:
                layer(path / name, part, clusters, 10 * number + depth)
            kind = base if depth == 0 else "Compressed"
            images.append((guids[2 - depth], kind, name))
        end = start + size // 512
        storages.append((start, end, images))
        start = end
        model += part
    (path / "DiskDescriptor.xml").write_text(descriptor(storages, guids))
    return path, bytearray(model)


def by_dissect(path, snapshot=""):
    """Read cluster by cluster, in a process of its own.

    dissect 3.21 leaves its files open, and in a longer read it joins a hole with the cluster
    behind it whose place in the file is the hole's length.
    """
    code = (
        "import pathlib, sys; from dissect.hypervisor.disk.hdd import HDD;"
        "stream = HDD(pathlib.Path(sys.argv[1])).open(sys.argv[2] or None);"
        "[sys.stdout.buffer.write(stream.read(1 << 20)) for _ in range(0, stream.size, 1 << 20)]"
    )
    words = [sys.executable, "-c", code, str(path), snapshot.strip("{}")]
    return subprocess.run(words, check=True, capture_output=True, timeout=600).stdout


@pytest.mark.parametrize("base", ["Compressed", "Plain"])
def test_a_bundle_with_snapshots_and_storages_reads_as_dissect_reads_it(base, tmp_path):
    path, model = bundle(tmp_path, base=base)
    assert probe_file(str(path)) == "parallels"
    chance = random.Random(1)
    with opened(path) as image:
        assert read_all(image) == model
        assert image.info().specific == {"storages": 2, "snapshots": 2}
        for _ in range(30):
            offset = chance.randrange(len(model))
            length = chance.randrange(len(model) - offset)
            assert image.pread(offset, length) == model[offset : offset + length]
    assert by_dissect(path) == model
    with pytest.raises(ImageAccessDenied, match="not opened unasked"):
        open_image(str(path))


@pytest.mark.needs_qemu_img
def test_only_the_top_images_are_written(tmp_path):
    path, model = bundle(tmp_path)
    below = {file: file.read_bytes() for file in path.glob("*.[01].hds")}
    exercised(path, "parallels", model, block=CLUSTER)
    assert by_dissect(path) == model
    assert {file: file.read_bytes() for file in below} == below
    by_qemu(path / "s0.2.hds", "parallels", tmp_path)
    with opened(path) as image, pytest.raises(ImageError, match="reading only"):
        image.pwrite(0, b"x")


def test_a_bundle_that_was_moved_finds_its_files_beside_it(tmp_path):
    path = tmp_path / "moved.hdd"
    path.mkdir()
    model = bytearray(2 * MIB)
    layer(path / "disk.hds", model, [1, 0], 3)
    images = [(TOP, "Compressed", "/Users/me/gone.pvm/gone.hdd/disk.hds")]
    (path / "DiskDescriptor.xml").write_text(descriptor([(0, 4096, images)], [TOP]))
    with opened(path) as image:
        assert read_all(image) == model
    assert by_dissect(path) == model


def test_another_top_snapshot_may_be_named(tmp_path):
    path, _ = bundle(tmp_path)
    xml = path / "DiskDescriptor.xml"
    named = xml.read_text().replace("<Snapshots>", f"<Snapshots><TopGUID>{OLDER[1]}</TopGUID>")
    model = by_dissect(path, OLDER[1])
    xml.write_text(named)
    with opened(path) as image:
        assert read_all(image) == model


def test_a_descriptor_that_contradicts_itself_is_refused(tmp_path):
    path, _ = bundle(tmp_path)
    xml = path / "DiskDescriptor.xml"
    whole = xml.read_text()
    declared = '<!DOCTYPE p [<!ENTITY a "5">]><Parallels_disk_image'
    for old, new, kind, words in (
        (NONE, OLDER[1], CorruptImage, "circles"),
        ("<Start>10240", "<Start>10000", CorruptImage, "one behind"),
        ("<End>17408", "<End>99999", CorruptImage, "shorter"),
        (OLDER[0] + "</GUID><Type>", OLDER[2] + "</GUID><Type>", CorruptImage, "no image"),
        ("<Start>0", "<Start>zero", CorruptImage, "no number"),
        ("Compressed", "Shrunk", ImageError, "not supported"),
        ("<StorageData>", "<StorageData><a>", CorruptImage, "broken"),
        ("<Parallels_disk_image", declared, CorruptImage, "entities"),
        ("<StorageData>", "<a>" * 40 + "</a>" * 40 + "<StorageData>", OutOfBounds, "too large"),
        ("<StorageData>", "<a/>" * 30_000 + "<StorageData>", OutOfBounds, "too large"),
        ("s0.0.hds", "missing.hds", ImageError, "No such file"),
    ):
        assert old in whole, old
        xml.write_text(whole.replace(old, new, 1 if old != "Compressed" else -1))
        with pytest.raises(kind, match=words):
            opened(path)
    xml.write_text(whole)
    with pytest.raises(OutOfBounds, match="snapshots"):
        opened(path, budget=Budget(chain_depth=2))
    xml.write_text(whole.replace("s0.2.hds", "../../../../etc/passwd"))
    with pytest.raises(ImageAccessDenied):
        open_image(str(path), gate=Beside())


class Beside(AllowLocalFiles):
    def allows(self, name, *, role, referrer):
        return ".." not in name


def test_damaged_descriptors_raise_nothing_but_image_errors(tmp_path):
    path, _ = bundle(tmp_path)
    xml = path / "DiskDescriptor.xml"
    whole = xml.read_bytes()
    chance = random.Random(5)
    for number in range(150):
        raw = bytearray(whole)
        for _ in range(chance.choice([1, 1, 4])):
            at = chance.randrange(60, len(raw))
            raw[at] = chance.choice([*b'<>/&"0159{}- ', chance.randrange(256)])
        if number % 5 == 0:
            del raw[chance.randrange(len(raw)) :]
        xml.write_bytes(raw)
        try:
            with opened(path, "parallels") as image:
                image.pread(0, 4096)
        except ImageError:
            continue
    shutil.rmtree(path)
