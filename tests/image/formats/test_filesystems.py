"""Real file systems, converted into every written format and out of it, are found clean."""

import subprocess

import pytest

from tests.image.formats.support import MIB, by_qemu, opened
from wirt.image.convert import ConvertSettings, convert

CASES = {
    "vdi": ("vdi", {}),
    "vpc": ("vpc", {}),
    "vpc-fixed": ("vpc", {"subformat": "fixed"}),
    "vhdx": ("vhdx", {}),
    "qed": ("qed", {}),
    "qcow": ("qcow", {}),
    "parallels": ("parallels", {}),
    "vmdk": ("vmdk", {}),
    "vmdk-stream": ("vmdk", {"subformat": "streamOptimized"}),
    "vmdk-cowd": ("vmdk", {"subformat": "vmfsSparse"}),
}


def run(*words):
    done = subprocess.run([str(word) for word in words], check=False, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """An ext4 and a FAT file system with files in them."""
    directory = tmp_path_factory.mktemp("filesystems")
    files = directory / "files"
    files.mkdir()
    for number in range(40):
        (files / f"file {number}").write_bytes(b"%d\n" % number * 9000)
    ext4, vfat = directory / "ext4.raw", directory / "vfat.raw"
    run("mke2fs", "-q", "-t", "ext4", "-d", files, ext4, "16M")
    with vfat.open("wb") as file:
        file.truncate(16 * MIB)
    run("mkfs.vfat", vfat)
    run("mcopy", "-i", vfat, *sorted(files.iterdir()), "::")
    return {"ext4": (ext4, ["e2fsck", "-fn"]), "vfat": (vfat, ["fsck.vfat", "-n"])}


@pytest.mark.needs_qemu_img
@pytest.mark.needs_tool("mke2fs")
@pytest.mark.needs_tool("mkfs.vfat")
@pytest.mark.needs_tool("mcopy")
@pytest.mark.parametrize("case", CASES)
def test_a_file_system_stays_clean(case, sources, tmp_path):
    name, options = CASES[case]
    for kind, (raw, check) in sources.items():
        path = tmp_path / f"{kind}.{name}"
        # The kernel copies one of them, where blocks are stored as they are.
        settings = ConvertSettings(options=options, offload=kind == "vfat")
        with opened(raw, "raw") as source:
            convert([source], str(path), name, settings)
        out = tmp_path / f"{kind}.out"
        out.write_bytes(by_qemu(path, name, tmp_path))
        run(*check, out)
        assert out.read_bytes() == raw.read_bytes()
        with opened(path, name) as image:
            settings = ConvertSettings(offload=kind == "vfat")
            convert([image], str(out), "raw", settings)
        assert out.read_bytes() == raw.read_bytes()
