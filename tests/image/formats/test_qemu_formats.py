"""qcow 1, qed and parallels: qemu-img makes and reads all of them."""

import random
import subprocess
import zlib
from itertools import islice

import pyqcow
import pytest

from tests.image.formats.support import (
    MIB,
    by_qemu,
    chain_read,
    check_by_qemu,
    exercised,
    made,
    mutated,
    opened,
    read_all,
    sample,
    sample_is_as_qemu_reads_it,
)
from wirt.errors import CorruptImage, ImageAccessDenied
from wirt.image.open import open_image
from wirt.image.probe import probe_file

NAMES = ["qcow", "qed", "parallels"]
CHECKED = {"qed", "parallels"}


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("name", ["parallels-v1", "parallels-v2", "parallels-with-bitmap"])
def test_a_disk_made_by_others_reads_as_in_qemu(name, tmp_path):
    path = sample(name, tmp_path)
    assert probe_file(str(path)) == "parallels"
    sample_is_as_qemu_reads_it(path, "parallels")


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("maker", ["wirt", "qemu-img"])
def test_what_is_written_is_what_qemu_reads(name, maker, tmp_path):
    path = tmp_path / f"d.{name}"
    if maker == "wirt":
        made(path, name, 9 * MIB + 512)
    else:
        command = ["qemu-img", "create", "-f", name, str(path), str(9 * MIB + 512)]
        subprocess.run(command, check=True, capture_output=True)
    model = bytearray(9 * MIB + 512)
    exercised(path, name, model, block=65536 if name == "qcow" else MIB)
    assert probe_file(str(path)) == name
    if name in CHECKED:
        check_by_qemu(path, name)
    assert by_qemu(path, name, tmp_path) == model


@pytest.mark.parametrize("name", ["qcow", "qed"])
def test_a_huge_empty_disk_is_looked_through_by_its_first_table(name, tmp_path):
    path = tmp_path / f"d.{name}"
    made(path, name, 1 << 36)
    with opened(path, name) as image:
        tables = len(image._l1)
        runs = list(islice(image._runs(0, image.virtual_size), tables + 1))
    assert len(runs) <= tables
    assert sum(run.length for run in runs) == 1 << 36


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("name", ["qcow", "qed"])
def test_a_child_reads_its_backing_file(name, tmp_path):
    below = random.Random(2).randbytes(3 * MIB)
    parent = made(tmp_path / "p", name, 3 * MIB)
    with opened(parent, name, writable=True) as image:
        image.pwrite(0, below)
    child = made(tmp_path / "c", name, 4 * MIB, backing="p")
    model = bytearray(below + bytes(MIB))
    assert chain_read(child) == model
    exercised(child, name, model, block=65536)
    assert by_qemu(child, name, tmp_path) == model
    with pytest.raises(ImageAccessDenied):
        open_image(str(child))


def packed_qcow(path, data):
    """Make a compressed qcow 1: qemu-img 7.2 gives up in the middle, with no message."""
    made(path, "qcow", len(data))
    with opened(path, "qcow", writable=True) as image:
        size = image.block_size
        for index in range(len(data) // size):
            deflate = zlib.compressobj(9, zlib.DEFLATED, -12)
            packed = deflate.compress(data[index * size :][:size]) + deflate.flush()
            if len(packed) < size:
                place = image._append(packed, align=1)
                image._set(index, 1 << 63 | len(packed) << 51 | place)
            else:
                image.pwrite(index * size, data[index * size :][:size])
        image._unpublished.add(0)
    return path


@pytest.mark.needs_qemu_img
def test_compressed_qcow_clusters_are_read_and_replaced(tmp_path):
    words = b"".join(b"%d\n" % number for number in range(200000))[:MIB]
    data = words + bytes(MIB) + random.Random(1).randbytes(MIB // 2) + b"text" * (MIB // 8)
    path = packed_qcow(tmp_path / "c.qcow", data)
    model = bytearray(data)
    assert chain_read(path) == model
    assert by_qemu(path, "qcow", tmp_path) == model
    exercised(path, "qcow", model, block=65536)
    assert by_qemu(path, "qcow", tmp_path) == model


@pytest.mark.needs_qemu_img
def test_an_encrypted_qcow_is_read_with_its_passphrase(tmp_path):
    path = tmp_path / "e.qcow"
    secret = "secret,id=s,data=geheim"
    subprocess.run(
        ["qemu-img", "create", "--object", secret, "-f", "qcow",
         "-o", "encrypt.format=aes,encrypt.key-secret=s", str(path), "2M"],
        check=True, capture_output=True,
    )  # fmt: skip
    options = f"driver=qcow,encrypt.key-secret=s,file.filename={path}"
    write = "write -P 0x41 1000000 5000"
    subprocess.run(
        ["qemu-io", "--object", secret, "-c", write, "--image-opts", options],
        check=True, capture_output=True,
    )  # fmt: skip
    with opened(path, secret=b"geheim") as image:
        assert image.pread(999999, 5002) == b"\0" + b"A" * 5000 + b"\0"
    with opened(path) as image:
        assert image.info().encrypted
        with pytest.raises(ImageAccessDenied, match="encrypted"):
            image.pread(1_000_000, 512)


ENCRYPTED = {
    "empty": [],
    "in order": [0, 1, 2, 3],
    "reversed": [3, 2, 1, 0],
    "hole first": [2, 3],
    "hole between": [0, 3],
    "swapped": [1, 0, 3],
}


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("shape", ENCRYPTED)
@pytest.mark.parametrize("secret", ["geheim", "sixteen letters!", "more than sixteen letters"])
def test_encrypted_clusters_lie_in_any_order(secret, shape, tmp_path):
    path, model = tmp_path / "e.qcow", bytearray(4 << 16)
    given = ["--object", f"secret,id=s,data={secret}"]
    subprocess.run(
        ["qemu-img", "create", *given, "-f", "qcow",
         "-o", "encrypt.format=aes,encrypt.key-secret=s", str(path), str(len(model))],
        check=True, capture_output=True,
    )  # fmt: skip
    commands = []
    for part in ENCRYPTED[shape]:
        start, length = (part << 16) + 512 * part, 20_480
        commands += ["-c", f"write -P {65 + part} {start} {length}"]
        model[start : start + length] = bytes([65 + part]) * length
    if commands:
        options = f"driver=qcow,encrypt.key-secret=s,file.filename={path}"
        subprocess.run(
            ["qemu-io", *given, *commands, "--image-opts", options], check=True, capture_output=True
        )
    with opened(path, secret=secret.encode()) as image:
        assert read_all(image) == model
        assert image.pread(1000, 200_000) == model[1000:201_000]
    if len(secret) <= 16:  # libqcow takes no longer ones; QEMU cuts them off
        other = pyqcow.file()
        other.set_password(secret)
        other.open(str(path))
        assert other.read_buffer(len(model)) == model
        other.close()


def test_a_parallels_disk_is_marked_while_it_is_written(tmp_path):
    path = made(tmp_path / "p.hds", "parallels", 4 * MIB)
    with opened(path, writable=True) as image:
        image.pwrite(0, b"x")
        assert path.read_bytes()[44:48] == b"Ynot"
        half = path.read_bytes()
    assert path.read_bytes()[44:48] == bytes(4)
    path.write_bytes(half)
    with pytest.raises(CorruptImage, match="not closed"):
        opened(path, writable=True)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_disks_raise_nothing_but_image_errors(name, tmp_path):
    path = made(tmp_path / f"m.{name}", name, 2 * MIB)
    exercised(path, name, bytearray(2 * MIB), block=65536)
    mutated(path, name, tmp_path, head=400)
