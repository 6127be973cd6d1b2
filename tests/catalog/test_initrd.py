from __future__ import annotations

import gzip
import lzma

import pytest
import zstandard

from wirt.catalog.initrd import Cpio, build_initrd, module_name, required_modules
from wirt.errors import CorruptImage, HostError


def entries(data):
    """A reader of its own: name → (mode, content) of a newc archive."""
    found, place = {}, 0
    while True:
        assert data[place : place + 6] == b"070701"
        fields = [int(data[start : start + 8], 16) for start in range(place + 6, place + 110, 8)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = data[place + 110 : place + 110 + name_size - 1].decode()
        place = place + 110 + name_size + 3 & ~3
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, data[place : place + size])
        place = place + size + 3 & ~3


@pytest.fixture
def kernel(tmp_path):
    modules = tmp_path / "6.0"
    (modules / "kernel").mkdir(parents=True)
    (modules / "modules.dep").write_text(
        "kernel/virtio_blk.ko.xz: kernel/virtio_ring.ko kernel/virtio.ko.zst\n"
        "kernel/virtio_ring.ko:\n"
        "kernel/virtio.ko.zst:\n"
        "kernel/ext4.ko.gz: kernel/jbd2.ko\n"
        "kernel/jbd2.ko:\n"
        "kernel/drm.ko:\n"
    )
    (modules / "modules.alias").write_text(
        "# Aliases\nalias virtio:d00000002v* virtio_blk\nalias pci:v1* drm\nalias fs-ext4 ext4\n"
    )
    (modules / "modules.builtin").write_text("kernel/drivers/ata/libata.ko\n")
    contents = {
        "virtio_blk.ko.xz": lzma.compress(b"blk"),
        "virtio_ring.ko": b"ring",
        "virtio.ko.zst": zstandard.compress(b"virtio"),
        "ext4.ko.gz": gzip.compress(b"ext4"),
        "jbd2.ko": b"jbd2",
    }
    for name, content in contents.items():
        (modules / "kernel" / name).write_bytes(content)
    return modules


@pytest.fixture
def busybox(tmp_path):
    path = tmp_path / "busybox"
    path.write_bytes(b"ELF")
    return path


def test_an_initrd_holds_the_wanted_modules_with_all_they_need_unpacked(kernel, busybox):
    files = entries(build_initrd(modules=kernel, busybox=busybox))
    modules = {
        name.rpartition("/")[2]: content
        for name, (_, content) in files.items()
        if name.endswith(".ko")
    }
    assert modules == {
        "virtio_ring.ko": b"ring",
        "virtio.ko": b"virtio",
        "virtio_blk.ko": b"blk",
        "ext4.ko": b"ext4",
        "jbd2.ko": b"jbd2",
    }
    dependencies = files["lib/modules/6.0/modules.dep"][1].decode()
    assert "kernel/virtio_blk.ko: kernel/virtio_ring.ko kernel/virtio.ko\n" in dependencies
    aliases = files["lib/modules/6.0/modules.alias"][1].decode()
    assert aliases == "alias virtio:d00000002v* virtio_blk\nalias fs-ext4 ext4\n"
    assert files["init"][0] == 0o100755
    assert files["bin/busybox"] == (0o100755, b"ELF")


def test_equal_input_makes_equal_bytes(kernel, busybox):
    assert build_initrd(modules=kernel, busybox=busybox) == build_initrd(
        modules=kernel, busybox=busybox
    )


def test_dependencies_come_before_what_needs_them(kernel):
    order = list(required_modules(kernel, ["virtio_blk", "unknown"]))
    assert order == ["kernel/virtio.ko.zst", "kernel/virtio_ring.ko", "kernel/virtio_blk.ko.xz"]


def test_a_kernel_that_cannot_reach_virtio_disks_is_refused(tmp_path, busybox):
    (tmp_path / "6.1").mkdir()
    with pytest.raises(HostError, match=r"6\.1 has no driver for virtio disks"):
        build_initrd(modules=tmp_path / "6.1", busybox=busybox)


@pytest.mark.parametrize("name", ["virtio_blk.ko.xz", "virtio.ko.zst", "ext4.ko.gz"])
def test_a_damaged_module_is_corrupt(kernel, busybox, name):
    (kernel / "kernel" / name).write_bytes(b"\x1f\x8b\x00garbage")
    with pytest.raises(CorruptImage, match="does not unpack"):
        build_initrd(modules=kernel, busybox=busybox)


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/snd-pcm.ko", "snd_pcm"), ("x.ko.zst", "x"), ("kernel/ext4.ko.xz", "ext4")],
)
def test_a_module_file_has_the_name_the_kernel_gives_it(path, name):
    assert module_name(path) == name


def test_parents_are_made_once():
    archive = Cpio()
    archive.file("x", b"1")
    archive.parents("a/b/c")
    archive.parents("a/b/d")
    assert list(entries(archive.finish())) == ["x", "a", "a/b"]
