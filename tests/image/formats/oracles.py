"""Readers that this project did not write. Each is asked only for what it reads right."""

import subprocess
import sys

import pyqcow
import pyvhdi
import pyvmdk

ORACLES = {
    "vdi": ["qemu-img"],
    "vdi-static": ["qemu-img"],
    "vpc": ["qemu-img", "libvhdi"],
    "vpc-fixed": ["qemu-img", "libvhdi"],
    "vhdx": ["qemu-img", "libvhdi", "dissect"],
    "vhdx-fixed": ["qemu-img", "libvhdi", "dissect"],
    "vhdx-4k": ["libvhdi"],
    "qed": ["qemu-img"],
    "qcow": ["qemu-img", "libqcow"],
    "parallels": ["qemu-img"],
    "vmdk": ["qemu-img", "libvmdk", "dissect"],
    "vmdk-flat": ["qemu-img", "libvmdk"],
    "vmdk-split": ["qemu-img", "libvmdk"],
    "vmdk-split-flat": ["qemu-img", "libvmdk"],
    "vmdk-vmfs": ["qemu-img", "libvmdk"],
    "vmdk-cowd": ["qemu-img", "libvmdk", "dissect"],
    "vmdk-child": ["qemu-img"],
    "vmdk-split-child": ["qemu-img"],
    "vmdk-cowd-child": ["qemu-img"],
    "vdi-child": ["dissect"],
    "vpc-child": ["libvhdi"],
    # libvhdi 20260901 returns one sector of a block that only the parent has, then zeros.
    "vhdx-child": ["dissect"],
    "qed-child": ["qemu-img"],
    "qcow-child": ["qemu-img"],
}


def read_by(oracle, path, *parents):
    """Return the disk as ``oracle`` reads it."""
    return {
        "qemu-img": by_qemu_img,
        "libvhdi": by_libvhdi,
        "libqcow": by_libqcow,
        "libvmdk": by_libvmdk,
        "dissect": by_dissect,
    }[oracle](path, *parents)


def by_qemu_img(path, *parents):
    name = path.suffix.removeprefix(".")
    out = path.with_name("by-qemu.raw")
    command = ["qemu-img", "convert", "-f", name, "-O", "raw", str(path), str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    data = out.read_bytes()
    out.unlink()
    return data


def by_libvhdi(path, *parents):
    files = []
    for name in (path, *parents):
        file = pyvhdi.file()
        file.open(str(name))
        if files:
            files[-1].set_parent(file)
        files.append(file)
    data = files[0].read_buffer_at_offset(files[0].get_media_size(), 0)
    for file in files:
        file.close()
    return data


def by_libqcow(path, *parents):
    file = pyqcow.file()
    file.open(str(path))
    data = file.read_buffer_at_offset(file.get_media_size(), 0)
    file.close()
    return data


def by_libvmdk(path, *parents):
    handle = pyvmdk.handle()
    handle.open(str(path))
    handle.open_extent_data_files()
    data = handle.read_buffer_at_offset(handle.get_media_size(), 0)
    handle.close()
    return data


# In a process of its own: it leaves files open. VDI is read in pieces of a block, since longer
# reads of disks out of order come back short.
_DISSECT = """
import sys
from pathlib import Path
from dissect.hypervisor.disk import vdi, vhdx, vmdk
path, *parents = map(Path, sys.argv[1:])
if path.suffix == ".vdi":
    below = vdi.VDI(parents[0].open("rb")).open() if parents else None
    disk = vdi.VDI(path.open("rb"), below).open()
else:
    disk = vhdx.VHDX(path) if path.suffix == ".vhdx" else vmdk.VMDK(path)
for piece in iter(lambda: disk.read(1 << 20), b""):
    sys.stdout.buffer.write(piece)
"""


def by_dissect(path, *parents):
    command = [sys.executable, "-W", "ignore", "-c", _DISSECT, path, *parents]
    return subprocess.run(command, check=True, capture_output=True, timeout=600).stdout
