"""The values of disks and cards serve a running QEMU as they serve the start."""

import time

import pytest

from tests.qemu import live
from wirt.qemu.block import throttle_limits
from wirt.qemu.board import port_place
from wirt.qemu.drive import disk_values
from wirt.qemu.nic import cable_values, nic_values
from wirt.qemu.runtime import Runtime
from wirt.spec import toml
from wirt.spec.disk import Disk, Throttle
from wirt.spec.nic import Nic, Socket, Unplugged, User

pytestmark = pytest.mark.needs_qemu

MACHINE = 'name = "plug"\nmemory = "32M"\ndisplays = []\n'


@pytest.fixture
def guest(qemu, base):
    binary, capabilities = qemu
    with live.running(toml.load(MACHINE), capabilities, binary, base) as running:
        yield running


@pytest.fixture
def runtime(base):
    return Runtime(accelerator="tcg", directory=str(base), socket=str)


def names(guest, path):
    return {item["name"] for item in guest.qmp.execute("qom-list", {"path": path}, reply=list)}


def test_a_throttled_disk_is_plugged_and_its_limits_changed(guest, runtime, base):
    (base / "new.raw").write_bytes(bytes(1 << 20))
    disk = Disk(image="new.raw", format="raw", serial="NEW", throttle=Throttle(iops_total=50))
    values = disk_values(disk, 5, runtime, port_place(9))
    for value in values.objects:
        guest.qmp.execute("object-add", value)
    for value in values.nodes:
        guest.qmp.execute("blockdev-add", value)
    for value in values.devices:
        guest.qmp.execute("device_add", value)
    assert "disk5" in names(guest, "/machine/peripheral")
    group = {"path": "/objects/disk5-limits", "property": "limits"}
    limits = guest.qmp.execute("qom-get", group, reply=dict)
    assert limits["iops-total"] == 50
    new = throttle_limits(Throttle(bytes_write=1 << 20))
    guest.qmp.execute("qom-set", {**group, "value": new})
    limits = guest.qmp.execute("qom-get", group, reply=dict)
    assert (limits["iops-total"], limits["bps-write"]) == (0, 1 << 20)


@pytest.mark.parametrize(
    "nic",
    [
        Nic(mac="52:54:00:00:00:01"),
        Nic(mac="52:54:00:00:00:02", backend=Unplugged()),
        Nic(mac="52:54:00:00:00:03", hub=7, backend=User(hostname="guest", restrict=True)),
    ],
)
def test_a_card_is_plugged(nic, guest, runtime):
    values = nic_values(nic, 3, runtime, port_place(1))
    for value in values.netdevs:
        guest.qmp.execute("netdev_add", value)
    guest.qmp.execute("device_add", values.device)
    place = {"path": "/machine/peripheral/nic3", "property": "mac"}
    assert guest.qmp.execute("qom-get", place, reply=str) == nic.mac


def test_another_cable_is_plugged_into_a_card(guest, runtime):
    """The card keeps its end, a port of its own hub; only what is behind the hub changes."""
    nic = Nic(mac="52:54:00:00:00:04")
    values = nic_values(nic, 3, runtime, port_place(1))
    for value in values.netdevs:
        guest.qmp.execute("netdev_add", value)
    guest.qmp.execute("device_add", values.device)
    for value in reversed(cable_values(nic, 3, runtime, 259)):
        guest.qmp.execute("netdev_del", {"id": value["id"]})
    other = Nic(mac=nic.mac, backend=Socket(udp="127.0.0.1:9", local_address="127.0.0.1:0"))
    for value in cable_values(other, 3, runtime, 259):
        guest.qmp.execute("netdev_add", value)
    hub = {"command-line": "info network"}
    seen = guest.qmp.execute("human-monitor-command", hub, reply=str)
    assert "nic3-uplink: nic3-net" in seen
    assert "type=user" not in seen


def test_a_card_is_plugged_into_the_older_board(qemu, base, runtime):
    binary, capabilities = qemu
    machine = toml.load(MACHINE + 'machine_type = "pc"\n')
    with live.running(machine, capabilities, binary, base) as guest:
        values = nic_values(Nic(model="e1000"), 0, runtime, {"bus": "pci.0", "addr": "0x1e"})
        for value in values.netdevs:
            guest.qmp.execute("netdev_add", value)
        guest.qmp.execute("device_add", values.device)
        assert "nic0" in names(guest, "/machine/peripheral")


def test_a_card_is_unplugged_from_its_root_port(guest, runtime):
    """Without a guest's driver the port gives the device up when the machine resets."""
    values = nic_values(Nic(backend=Unplugged()), 3, runtime, port_place(1))
    for value in values.netdevs:
        guest.qmp.execute("netdev_add", value)
    guest.qmp.execute("device_add", values.device)
    guest.qmp.execute("device_del", {"id": "nic3"})
    guest.qmp.execute("system_reset")
    deadline = time.monotonic() + 300
    while "nic3" in names(guest, "/machine/peripheral"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
