"""Disks: what is refused, and the same values for start and hot-plug."""

import pytest
from msgspec.structs import replace

from tests.qemu import machines
from tests.qemu.validate import Schema
from wirt.errors import SpecError
from wirt.qemu.block import disk_nodes, node_name, throttle_limits
from wirt.qemu.board import Board, port_place
from wirt.qemu.drive import Buses, disk_values, drive_place
from wirt.qemu.runtime import Served
from wirt.spec.disk import Disk, Geometry, Throttle

RUNTIME = machines.runtime("x")


def value_of(disk, index=0):
    return disk_values(disk, index, RUNTIME, port_place(9)).devices[-1]


@pytest.mark.parametrize(
    ("disk", "key"),
    [
        (Disk(image="a", format="qcow3"), "disks[3].format"),
        (Disk(image="a", format="nbd"), "disks[3].format"),
        (Disk(image="a", aio="native"), "disks[3].aio"),
        (Disk(image="a", detect_zeroes="unmap", discard="ignore"), "disks[3].detect_zeroes"),
        (Disk(image="a", serial="x" * 21), "disks[3].serial"),
        (Disk(image="a", bus="scsi", serial="x" * 37), "disks[3].serial"),
        (Disk(image="a", bus="floppy", serial="x"), "disks[3].serial"),
        (Disk(image="a", bus="ide", read_only=True), "disks[3].read_only"),
        (Disk(image="a", bus="usb", geometry=Geometry(1, 1, 1)), "disks[3].geometry"),
        (
            Disk(image="a", geometry=Geometry(1, 1, 1, translation="lba")),
            "disks[3].geometry.translation",
        ),
        (Disk(image="a", bus="ide", geometry=Geometry(9, 17, 63)), "disks[3].geometry.heads"),
        (Disk(image="a", serial="Nº1"), "disks[3].serial"),
        (Disk(image="a", bus="sd", read_only=True), "disks[3].read_only"),
        (Disk(image="a", throttle=Throttle(bytes_total=10**15 + 1)), "disks[3].throttle"),
        (Disk(image="a", discard_writes=True), "disks[3].discard_writes"),
    ],
)
def test_what_qemu_would_refuse_or_ignore_is_refused_by_its_key(disk, key):
    with pytest.raises(SpecError) as error:
        disk_values(disk, 3, RUNTIME, {})
    assert error.value.key == key


def test_a_mistyped_format_gets_the_known_ones():
    with pytest.raises(SpecError) as error:
        disk_nodes(Disk(image="a", format="qcow3"), 0, RUNTIME)
    assert "qcow2, qcow" in error.value.hint


@pytest.mark.parametrize(
    ("board", "disk"),
    [
        ("pc", Disk(bus="ide", bus_index=2)),
        ("pc", Disk(bus="ide", unit=2)),
        ("q35", Disk(bus="sata", bus_index=6)),
        ("q35", Disk(bus="sata", unit=1)),
        ("q35", Disk(bus="floppy", unit=2)),
        ("q35", Disk(bus="scsi", bus_index=4)),
        ("q35", Disk(bus="mtd")),
    ],
)
def test_a_place_that_the_bus_does_not_have_is_refused(board, disk):
    with pytest.raises(SpecError, match=r"disks\[0\]"):
        drive_place(disk, 0, Board(board), Buses())


@pytest.mark.parametrize(("bus", "count"), [("ide", 4), ("floppy", 2), ("sd", 1), ("sata", 6)])
def test_a_full_bus_is_refused(bus, count):
    board, buses = Board("pc"), Buses()
    places = [tuple(drive_place(Disk(bus=bus), n, board, buses).values()) for n in range(count)]
    assert len(set(places)) == count
    with pytest.raises(SpecError):
        drive_place(Disk(bus=bus), count, board, buses)


def test_a_drive_after_one_with_a_given_place_goes_behind_it():
    board, buses = Board("pc"), Buses()
    drive_place(Disk(bus="scsi", unit=7), 0, board, buses)
    assert drive_place(Disk(bus="scsi"), 1, board, buses)["scsi-id"] == 8


@pytest.mark.parametrize(
    ("cache", "direct", "no_flush", "write_cache"),
    [
        ("writeback", False, False, "on"),
        ("none", True, False, "on"),
        ("writethrough", False, False, "off"),
        ("directsync", True, False, "off"),
        ("unsafe", False, True, "on"),
    ],
)
def test_cache_modes_are_three_switches(cache, direct, no_flush, write_cache):
    disk = Disk(image="a", cache=cache)
    for node in disk_nodes(disk, 0, RUNTIME):
        assert node["cache"] == {"direct": direct, "no-flush": no_flush}
    assert value_of(disk)["write-cache"] == write_cache


def test_the_top_node_is_the_one_that_the_drive_shows():
    for disk in (Disk(image="a"), Disk(image="a", throttle=Throttle(iops_total=1))):
        assert disk_nodes(disk, 2, RUNTIME)[-1]["node-name"] == node_name(disk, 2)
        assert value_of(disk, 2)["drive"] == node_name(disk, 2)


def test_limits_are_complete_so_that_setting_them_anew_clears_the_old_ones():
    assert set(throttle_limits(Throttle(iops_read=5)).values()) == {0, 5}
    assert len(throttle_limits(Throttle())) == 6


@pytest.mark.parametrize(
    ("path", "driver"),
    [
        ("/dev/vg/guest", "host_device"),
        ("/dev/shm/a.raw", "file"),
        ("/dev/../tmp/a", "file"),
        ("dev/a", "file"),
        ("/srv/dev/a", "file"),
    ],
)
def test_devices_are_known_by_their_path(path, driver):
    assert disk_nodes(Disk(image=path, format="raw"), 0, RUNTIME)[0]["driver"] == driver


@pytest.mark.parametrize("version", ["7.2", "10.0"])
@pytest.mark.parametrize("below", [False, True])
def test_a_served_image_is_a_plain_disk_on_a_socket(version, below):
    served = {0: Served("/run/disks.sock", "disk0", below=below)}
    disk = Disk(image="a", format="qcow2" if below else "cow", throttle=Throttle(iops_total=5))
    nodes = disk_nodes(disk, 0, replace(RUNTIME, served=served))
    schema = Schema(version)
    assert [schema.problems("blockdev-add", node) for node in nodes] == [[]] * len(nodes)
    found = {node["node-name"]: node for node in nodes}
    if below:
        assert found["disk0-format"]["backing"] == "disk0-below-format"
        assert found["disk0-below-file"]["read-only"] is True
        assert found["disk0-file"]["driver"] == "file"
    stem = "disk0-below" if below else "disk0"
    assert found[f"{stem}-format"]["driver"] == "raw"
    assert found[f"{stem}-file"]["server"] == {"type": "unix", "path": "/run/disks.sock"}
    assert found[f"{stem}-file"]["export"] == "disk0"
    assert nodes[-1]["driver"] == "throttle"
