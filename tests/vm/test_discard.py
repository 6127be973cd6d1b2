"""Disks whose writes are lost: overlays that are made anew and leave nothing behind."""

import json
import os
import subprocess

import pytest

from wirt.spec.disk import Disk
from wirt.spec.machine import Machine
from wirt.store.layout import VmPaths
from wirt.vm.discard import make_overlays, overlay_paths, remove_overlays

pytestmark = pytest.mark.needs_qemu_img


@pytest.fixture
def paths(tmp_path):
    (tmp_path / "vm" / "disks").mkdir(parents=True)
    return VmPaths(str(tmp_path / "vm"), str(tmp_path))


def image(paths, name, image_format, size="3M"):
    path = os.path.join(paths.root, name)
    subprocess.run(["qemu-img", "create", "-q", "-f", image_format, path, size], check=True)
    return name


def size_of(path):
    words = ["qemu-img", "info", "--output=json", path]
    found = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    return found["format"], found["virtual-size"], found.get("backing-filename")


def test_each_discarding_disk_gets_an_empty_overlay_of_its_size(paths):
    machine = Machine(
        name="a",
        disks=(
            Disk(image=image(paths, "a.raw", "raw"), format="raw", discard_writes=True),
            Disk(image=image(paths, "b.qcow2", "qcow2")),
            Disk(image=image(paths, "c.qcow2", "qcow2", "9M"), discard_writes=True),
        ),
    )
    make_overlays(paths, machine)
    made = overlay_paths(paths, machine)
    assert {i: size_of(path) for i, path in made.items()} == {
        0: ("qcow2", 3 << 20, None),
        2: ("qcow2", 9 << 20, None),
    }
    remove_overlays(paths, machine)
    assert os.listdir(paths.disks) == []


def test_what_an_interrupted_start_left_is_replaced(paths):
    machine = Machine(
        name="a",
        disks=(Disk(image=image(paths, "a.raw", "raw"), format="raw", discard_writes=True),),
    )
    overlay = overlay_paths(paths, machine)[0]
    with open(overlay, "wb") as file:
        file.write(b"rubbish" * 100_000)
    make_overlays(paths, machine)
    assert size_of(overlay) == ("qcow2", 3 << 20, None)


def test_drives_that_only_read_need_no_overlay(paths):
    machine = Machine(
        name="a",
        disks=(
            Disk(image="a", read_only=True, discard_writes=True),
            Disk(image="b", bus="sata", media="cdrom", discard_writes=True),
            Disk(bus="sata", media="cdrom"),
        ),
    )
    assert overlay_paths(paths, machine) == {}
