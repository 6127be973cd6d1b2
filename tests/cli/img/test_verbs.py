"""Each verb of ``wirt img`` does what it says, and says what it did."""

import json
import random

import pytest

from tests.cli.img.conftest import MIB, qemu_img
from wirt.errors import (
    AlreadyExists,
    CorruptImage,
    ImageLeaks,
    NotFound,
    UnsupportedImage,
    UsageError,
)
from wirt.image.registry import FORMATS

pytestmark = pytest.mark.needs_qemu_img


def disk(path, size=3 * MIB, seed=1):
    data = random.Random(seed).randbytes(size // 2) + bytes(size - size // 2)
    path.write_bytes(data)
    return data


def test_info_tells_of_several_images_at_once(wirt_img, tmp_path):
    disk(tmp_path / "a.raw")
    qemu_img("create", "-f", "qcow2", tmp_path / "b.qcow2", "1G")
    wirt_img("create", "-b", "b.qcow2", "c.qcow2")
    found = wirt_img.json("info", "a.raw", "b.qcow2", "c.qcow2")
    assert [one["format"] for one in found] == ["raw", "qcow2", "qcow2"]
    assert [one["virtual_size"] for one in found] == [3 * MIB, 1 << 30, 1 << 30]
    assert [layer["file"] for layer in found[2]["chain"]] == ["b.qcow2"]
    assert found[1]["specific"]["refcount-bits"] == 16
    text = wirt_img("info", "c.qcow2")
    assert "format: qcow2\nvirtual size: 1G\n" in text
    assert "backing name: b.qcow2" in text
    assert "1  b.qcow2  qcow2, " in text


@pytest.mark.parametrize("name", [one.name for one in FORMATS])
def test_info_knows_what_was_made_of_every_format(wirt_img, name):
    if "create" not in vars(type(next(one for one in FORMATS if one.name == name))):
        pytest.skip("this format is only read")
    encrypted = ["--encrypt", "--secret-file", "key"] if name == "luks" else []
    (wirt_img.place / "key").write_text("secret")
    wirt_img("create", "--format", name, *encrypted, "disk", "8M")
    [found] = wirt_img.json("info", "--format", name, "disk")
    assert found["format"] == name
    assert found["virtual_size"] >= 8 * MIB


def test_info_shows_snapshots_and_bitmaps(wirt_img):
    wirt_img("create", "disk.qcow2", "8M")
    wirt_img("snapshot", "create", "disk.qcow2", "before\x1b[31m")
    wirt_img("bitmap", "add", "disk.qcow2", "since", "--granularity", "64K")
    text = wirt_img("info", "disk.qcow2")
    assert "1   before?[31m" in text
    assert "since  64K          yes" in text
    [found] = wirt_img.json("info", "disk.qcow2")
    assert found["snapshots"][0]["id"] == "1"
    assert found["bitmaps"][0]["granularity"] == 65536


def test_create_finds_format_and_size_by_itself(wirt_img, tmp_path):
    assert wirt_img("create", "a.vmdk", "8M") == "a.vmdk: vmdk, 8M\n"
    assert wirt_img("create", "disk", "8M") == "disk: qcow2, 8M\n"
    assert "an overlay of disk (qcow2)" in wirt_img("create", "-b", "disk", "top")
    assert '"backing-filename-format": "qcow2"' in qemu_img("info", "--output=json", "top")
    assert "1G" in wirt_img("create", "-b", "disk", "larger", "1G")
    assert "--force" in wirt_img("create", "disk", "8M", code=AlreadyExists.exit_code)
    wirt_img("create", "--force", "-o", "cluster_size=4k,compat=v2", "disk", "4M")
    assert "version: 2" in qemu_img("check", "disk") or "0.10" in qemu_img("info", "disk")
    assert "which size?" in wirt_img("create", "none", code=UsageError.exit_code)
    (tmp_path / "below").mkdir()
    wrong = wirt_img("create", "-b", "disk", "below/top", code=NotFound.exit_code)
    assert "-b ../disk" in wrong


def test_convert_there_and_back_again(wirt_img, tmp_path):
    data = disk(tmp_path / "a.raw")
    for step in ("b.qcow2", "c.vmdk", "d.vdi", "e.vhdx", "f.raw"):
        source = max(tmp_path.glob("?.*")).name
        assert wirt_img("convert", source, step).startswith(f"{step}: {step.split('.')[1]}, ")
    assert (tmp_path / "f.raw").read_bytes() == data
    refused = wirt_img("convert", "a.raw", "f.raw", code=AlreadyExists.exit_code)
    assert "--force" in refused
    wirt_img("convert", "--force", "a.raw", "f.raw")
    assert not list(tmp_path.glob("*.partial*"))


def test_convert_compresses_and_takes_options(wirt_img, tmp_path):
    disk(tmp_path / "a.raw")
    options = ["-c", "--level", "best", "-o", "compression_type=zstd,cluster_size=128k"]
    made = wirt_img.json("convert", *options, "a.raw", "b.qcow2")
    assert (made["target"], made["format"]) == ("b.qcow2", "qcow2")
    found = json.loads(qemu_img("info", "--output=json", "b.qcow2"))
    assert found["cluster-size"] == 128 << 10
    assert found["format-specific"]["data"]["compression-type"] == "zstd"
    qemu_img("compare", "-f", "raw", "-F", "qcow2", "a.raw", "b.qcow2")
    wrong = wirt_img("convert", "-o", "cluster", "a.raw", "c.qcow2", code=UsageError.exit_code)
    assert "KEY=VALUE" in wrong


def test_convert_joins_sources_and_copies_one_snapshot(wirt_img, tmp_path):
    first, second = disk(tmp_path / "a.raw"), disk(tmp_path / "b.raw", seed=2)
    wirt_img("convert", "a.raw", "b.raw", "both.raw")
    assert (tmp_path / "both.raw").read_bytes() == first + second
    wirt_img("convert", "a.raw", "c.qcow2")
    wirt_img("snapshot", "create", "c.qcow2", "then")
    wirt_img("bench", "--write", "--count", "9", "--size", "64K", "c.qcow2")
    wirt_img("convert", "--snapshot", "then", "c.qcow2", "then.raw")
    assert (tmp_path / "then.raw").read_bytes() == first
    wirt_img("compare", "c.qcow2", "then.raw", code=1)
    wirt_img("convert", "--snapshot", "x", "c.qcow2", "x.raw", code=NotFound.exit_code)


def test_convert_writes_into_what_exists_and_makes_overlays(wirt_img, tmp_path):
    data = disk(tmp_path / "a.raw")
    (tmp_path / "device").write_bytes(b"old" * MIB)
    wirt_img("convert", "--into", "--to", "raw", "a.raw", "device")
    assert (tmp_path / "device").read_bytes() == data
    wirt_img("create", "-b", "a.raw", "top.qcow2")
    wirt_img("convert", "-b", "a.raw", "top.qcow2", "other.qcow2")
    assert '"backing-filename": "a.raw"' in qemu_img("info", "--output=json", "other.qcow2")
    wirt_img("compare", "other.qcow2", "a.raw")


def test_compare_ends_with_one_when_guests_see_a_difference(wirt_img, tmp_path):
    disk(tmp_path / "a.raw")
    wirt_img("convert", "a.raw", "b.qcow2")
    assert wirt_img("compare", "a.raw", "b.qcow2") == "identical\n"
    assert wirt_img.json("compare", "--strict", "a.raw", "a.raw")["identical"]
    with (tmp_path / "a.raw").open("r+b") as file:
        file.seek(MIB)
        file.write(b"different")
    assert wirt_img("compare", "a.raw", "b.qcow2", code=1) == "different: data at 0x100000\n"
    assert wirt_img.json("compare", "a.raw", "b.qcow2", code=1)["offset"] == MIB


def test_map_agrees_with_qemu_img(wirt_img, tmp_path):
    disk(tmp_path / "a.raw")
    wirt_img("convert", "a.raw", "b.qcow2")
    wirt_img("create", "-b", "b.qcow2", "c.qcow2")
    ours, theirs = wirt_img.json("map", "c.qcow2"), qemu_img("map", "--output=json", "c.qcow2")
    data = [(row["start"], row["length"], row["offset"]) for row in ours if row["file"]]
    wanted = [
        (row["start"], row["length"], row["offset"]) for row in json.loads(theirs) if row["data"]
    ]
    assert data == wanted
    assert "data             1  b.qcow2 at 0x50000" in wirt_img("map", "c.qcow2")
    assert wirt_img.json("map", "--start", "1G", "c.qcow2") == []
    part = wirt_img.json("map", "--start", "64K", "--length", "64K", "c.qcow2")
    assert [(row["start"], row["length"]) for row in part] == [(65536, 65536)]


def test_resize_grows_and_shrinks_only_with_consent(wirt_img):
    wirt_img("create", "disk.qcow2", "1G")
    assert wirt_img("resize", "disk.qcow2", "+1G") == "disk.qcow2: 2G (was 1G)\n"
    assert "--shrink" in wirt_img("resize", "disk.qcow2", "1G", code=UsageError.exit_code)
    assert wirt_img.json("resize", "--shrink", "disk.qcow2", "1G")["virtual_size"] == 1 << 30
    wirt_img("create", "disk.bochs", "1G")
    refused = wirt_img("resize", "disk.bochs", "2G", code=UnsupportedImage.exit_code)
    assert "wirt img convert" in refused


def test_snapshots_bring_the_disk_back(wirt_img, tmp_path):
    disk(tmp_path / "a.raw")
    wirt_img("convert", "a.raw", "b.qcow2")
    assert "there are no snapshots" in wirt_img("snapshot", "ls", "b.qcow2")
    assert wirt_img("snapshot", "create", "b.qcow2", "one") == "one: made\n"
    wirt_img("bench", "--write", "--count", "5", "--size", "64K", "--pattern", "7", "b.qcow2")
    wirt_img("compare", "a.raw", "b.qcow2", code=1)
    wirt_img("snapshot", "apply", "b.qcow2", "one")
    wirt_img("compare", "a.raw", "b.qcow2")
    assert wirt_img.json("snapshot", "ls", "b.qcow2")[0]["name"] == "one"
    assert "one" in qemu_img("snapshot", "-l", "b.qcow2")
    wirt_img("snapshot", "rm", "b.qcow2", "one")
    wirt_img("snapshot", "rm", "b.qcow2", "one", code=NotFound.exit_code)
    assert "which snapshot?" in wirt_img("snapshot", "rm", "b.qcow2", code=UsageError.exit_code)
    refused = wirt_img("snapshot", "ls", "a.raw", code=UnsupportedImage.exit_code)
    assert "raw images have no snapshots" in refused


def test_overlays_are_rebased_committed_and_flattened(wirt_img, tmp_path):
    disk(tmp_path / "a.raw")
    disk(tmp_path / "b.raw", seed=2)
    wirt_img("create", "-b", "a.raw", "top.qcow2")
    wirt_img("convert", "top.qcow2", "seen.raw")
    assert "an overlay of b.raw" in wirt_img("rebase", "top.qcow2", "b.raw")
    wirt_img("compare", "top.qcow2", "seen.raw")
    wirt_img("rebase", "--unsafe", "-F", "raw", "top.qcow2", "a.raw")
    wirt_img("rebase", "--unsafe", "-F", "raw", "top.qcow2", "b.raw")
    assert wirt_img("commit", "top.qcow2") == "top.qcow2: committed into b.raw\n"
    wirt_img("compare", "b.raw", "seen.raw")
    assert "needs no other file" in wirt_img("flatten", "top.qcow2")
    (tmp_path / "b.raw").unlink()
    wirt_img("compare", "top.qcow2", "seen.raw")
    assert "no backing image" in wirt_img("commit", "top.qcow2", code=UsageError.exit_code)


def test_bitmaps_are_managed_and_merged_across_files(wirt_img, tmp_path):
    wirt_img("create", "a.qcow2", "8M")
    wirt_img("create", "b.qcow2", "8M")
    for name in ("a.qcow2", "b.qcow2"):
        wirt_img("bitmap", "add", name, "one", "--granularity", "64K")
    wirt_img("bench", "--write", "--count", "3", "--size", "64K", "--offset", "1M", "b.qcow2")
    wirt_img("bitmap", "disable", "b.qcow2", "one")
    assert wirt_img("bitmap", "merge", "--from", "b.qcow2", "a.qcow2", "one", "one") == (
        "one: merged\n"
    )
    assert [one["enabled"] for one in wirt_img.json("bitmap", "ls", "b.qcow2")] == [False]
    assert "one   64K" in wirt_img("bitmap", "ls", "a.qcow2")
    qemu_img("bitmap", "--add", "--merge", "one", "-b", "b.qcow2", "-F", "qcow2", "a.qcow2", "two")
    assert {one["name"] for one in wirt_img.json("bitmap", "ls", "a.qcow2")} == {"one", "two"}
    wirt_img("bitmap", "clear", "a.qcow2", "one")
    wirt_img("bitmap", "enable", "b.qcow2", "one")
    wirt_img("bitmap", "rm", "a.qcow2", "one")
    wirt_img("bitmap", "merge", "a.qcow2", "two", code=UsageError.exit_code)
    wirt_img("bitmap", "rm", "a.qcow2", "one", code=NotFound.exit_code)
    qemu_img("check", "a.qcow2")


def test_check_tells_leaks_from_corruption_and_repairs(wirt_img, tmp_path):
    disk(tmp_path / "a.raw")
    wirt_img("convert", "a.raw", "b.qcow2")
    assert wirt_img("check", "b.qcow2").endswith(" clusters in use\n")
    with (tmp_path / "b.qcow2").open("r+b") as file:
        file.seek(0x20000 + 2 * 40)  # the count of a cluster that nothing refers to
        file.write(b"\0\1")
        file.truncate(41 << 16)
    assert "leaked clusters" in wirt_img("check", "b.qcow2", code=ImageLeaks.exit_code)
    qemu_img("check", "b.qcow2", ok=(3,))
    wirt_img("check", "--repair", "leaks", "b.qcow2")
    with (tmp_path / "b.qcow2").open("r+b") as file:
        file.seek(0x20000 + 2 * 6)  # that of a data cluster
        file.write(b"\0\0")
    found = wirt_img.json("check", "b.qcow2", code=CorruptImage.exit_code)
    assert found["corruptions"] > 0
    assert "--repair all" in wirt_img("check", "b.qcow2", code=CorruptImage.exit_code)
    repaired = wirt_img("check", "--repair", "all", "b.qcow2")
    assert "repaired: 1 errors" in repaired
    assert repaired.endswith(" clusters in use\n")
    qemu_img("check", "b.qcow2")
    wirt_img("compare", "a.raw", "b.qcow2")
    refused = wirt_img("check", "a.raw", code=UnsupportedImage.exit_code)
    assert "nothing to check" in refused


def test_dd_measure_amend_and_bench_say_what_they_did(wirt_img, tmp_path):
    data = disk(tmp_path / "a.raw")
    words = ["--block-size", "1k", "--skip", "3", "--count", "10"]
    assert wirt_img("dd", *words, "a.raw", "part.raw") == "part.raw: raw\n"
    assert (tmp_path / "part.raw").read_bytes() == data[3072:10240]
    theirs = json.loads(qemu_img("measure", "--output=json", "-O", "qcow2", "--size", "1G"))
    assert wirt_img.json("measure", "--size", "1G")["required"] == theirs["required"]
    assert "required: " in wirt_img("measure", "a.raw")
    wirt_img("measure", code=UsageError.exit_code)
    wirt_img("convert", "a.raw", "b.qcow2")
    wirt_img("amend", "-o", "compat=0.10", "b.qcow2")
    assert "compat: 0.10" in qemu_img("info", "b.qcow2")
    wirt_img("amend", "b.qcow2", code=UsageError.exit_code)
    wirt_img("amend", "-o", "cluster_size=4k", "b.qcow2", code=UsageError.exit_code)
    sized = wirt_img("amend", "-o", "size=1G", "b.qcow2", code=UsageError.exit_code)
    assert "wirt img resize b.qcow2" in sized
    assert wirt_img("bench", "--count", "20", "b.qcow2").startswith("20 requests of 4K in ")
    assert wirt_img.json("bench", "--count", "20", "b.qcow2")["requests_per_second"] > 0
