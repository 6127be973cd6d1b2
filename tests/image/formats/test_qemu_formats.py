"""qcow 1, qed and parallels: qemu-img makes and reads all of them."""

import random
import subprocess
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
from wirt.errors import CorruptImage, ImageAccessDenied, UsageError
from wirt.image.convert import ConvertSettings, convert
from wirt.image.create import create_image
from wirt.image.open import open_image
from wirt.image.probe import probe_file
from wirt.units import parse_size

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
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("qed", {"cluster_size": "4096", "table_size": "2"}),
        ("qed", {"cluster_size": "256K", "table_size": "16"}),
        ("parallels", {"cluster_size": "64K"}),
        ("parallels", {"cluster_size": "4M"}),
    ],
)
def test_clusters_have_the_size_that_was_asked_for(name, options, tmp_path):
    path = tmp_path / "disk"
    create_image(str(path), name, 9 * MIB + 512, options=options)
    with opened(path, name) as image:
        assert image.block_size == parse_size(options["cluster_size"])
    model = bytearray(9 * MIB + 512)
    exercised(path, name, model, block=MIB)
    check_by_qemu(path, name)
    assert by_qemu(path, name, tmp_path) == model


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("qed", "cluster_size=1000"),
        ("qed", "table_size=3"),
        ("qed", "table_size=1"),
        ("parallels", "cluster_size=700"),
    ],
)
def test_clusters_that_cannot_be_are_refused(name, option, tmp_path):
    key, _, value = option.partition("=")
    with pytest.raises(UsageError):
        create_image(str(tmp_path / "disk"), name, MIB, options={key: value})
    assert not (tmp_path / "disk").exists()


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


@pytest.mark.needs_qemu_img
def test_compressed_qcow_clusters_are_read_and_replaced(tmp_path):
    words = b"".join(b"%d\n" % number for number in range(200000))[:MIB]
    data = words + bytes(MIB) + random.Random(1).randbytes(MIB // 2) + b"text" * (MIB // 8)
    (tmp_path / "plain").write_bytes(data)
    path, model = tmp_path / "c.qcow", bytearray(data)
    with opened(tmp_path / "plain", "raw") as image:
        convert([image], str(path), "qcow", ConvertSettings(compressed=True))
    assert path.stat().st_size < len(data) * 2 // 3
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
