"""Places: stable, explicit, and refused when there are none left."""

import pytest

from tests.qemu import machines
from wirt.errors import SpecError, WrongState
from wirt.qemu.board import Board, port_place
from wirt.qemu.compile import arguments
from wirt.qemu.free_place import free_nic_place
from wirt.qemu.render import argv
from wirt.spec import toml
from wirt.spec.nic import Nic


def devices(text):
    machine = toml.load(text)
    made = arguments(machine, machines.runtime("x"), machines.recorded("7.2"))
    return {v["id"]: v for v in machines.json_values(argv("qemu", made), "-device")}


def place(value):
    return {key: value[key] for key in ("bus", "addr", "unit", "scsi-id") if key in value}


@pytest.mark.parametrize("board", ["q35", "pc"])
def test_adding_disks_and_devices_does_not_move_a_network_card(board):
    few = devices(f'name = "a"\nmachine_type = "{board}"\n[[nics]]\n[[nics]]\nmodel = "e1000"\n')
    many = devices(
        f'name = "a"\nmachine_type = "{board}"\nsound = ["ac97"]\nusb = {{ controller = "xhci" }}\n'
        'watchdog = {}\n[[disks]]\nimage = "a"\n[[disks]]\nimage = "b"\n'
        '[[nics]]\n[[nics]]\nmodel = "e1000"\n[[nics]]\n'
    )
    for name in ("nic0", "nic1"):
        assert place(few[name]) == place(many[name])


@pytest.mark.parametrize("board", ["q35", "pc"])
def test_adding_network_cards_does_not_move_a_disk(board):
    head = f'name = "a"\nmachine_type = "{board}"\n[[disks]]\nimage = "a"\n'
    assert place(devices(head)["disk0"]) == place(devices(head + "[[nics]]\n" * 6)["disk0"])


@pytest.mark.parametrize("board", ["q35", "pc"])
def test_leaving_out_small_devices_moves_nothing(board):
    head = f'name = "a"\nmachine_type = "{board}"\n'
    bare = head + "rng = false\nballoon = false\nvmgenid = false\n"
    rest = 'watchdog = {}\n[[disks]]\nimage = "a"\n[[nics]]\n[[channels]]\nname = "c"\n'
    full, less = devices(head + rest), devices(bare + rest)
    assert all(place(full[name]) == place(value) for name, value in less.items())


def test_spare_root_ports_are_there_for_cards_and_for_disks():
    made = devices('name = "a"\n[[disks]]\nimage = "a"\n[[nics]]\n')
    used = {value["bus"] for value in made.values() if str(value.get("bus", "")).startswith("port")}
    ports = {name for name, value in made.items() if value["driver"] == "pcie-root-port"}
    assert used == {"port0", "port8"}
    assert ports - used == {"port1", "port2", "port9", "port10"}
    assert port_place(9) == {"bus": "port9", "addr": "0x0"}


def test_without_hotplug_there_are_no_root_ports_and_all_is_on_the_root_bus():
    text = 'name = "a"\nhotplug = false\n[[disks]]\nimage = "a"\n[[disks]]\nimage = "b"\n[[nics]]\n'
    made = devices(text)
    assert "pcie-root-port" not in {value["driver"] for value in made.values()}
    names = ("disk0", "disk1", "nic0")
    assert [place(made[name]) for name in names] == [
        {"bus": "pcie.0", "addr": "0x16"},
        {"bus": "pcie.0", "addr": "0x17"},
        {"bus": "pcie.0", "addr": "0x10"},
    ]


def test_a_card_is_plugged_into_a_free_port_and_refused_where_there_are_none():
    def line(text):
        made = arguments(toml.load(text), machines.runtime("x"), machines.recorded("7.2"))
        return argv("qemu", made)

    card = Nic()
    assert free_nic_place(card, line('name = "a"\n[[nics]]\n'), ()) == (port_place(1), "port1")
    assert free_nic_place(card, line('name = "a"\nmachine_type = "pc"\n'), ())[1] == "0x3"
    with pytest.raises(WrongState, match="while it runs") as refused:
        free_nic_place(card, line('name = "a"\nhotplug = false\n[[nics]]\n'), ())
    assert "hotplug" in refused.value.hint


def test_the_first_function_of_a_slot_with_ports_is_always_there():
    made = devices('name = "a"\n').values()
    ports = [value for value in made if value["driver"] == "pcie-root-port"]
    first = {value["addr"].split(".")[0] for value in ports if "multifunction" in value}
    assert {value["addr"].split(".")[0] for value in ports} == first


@pytest.mark.parametrize(("board", "count"), [("q35", 39), ("pc", 21)])
def test_a_full_board_is_refused(board, count):
    fits = Board(board)
    places = [tuple(fits.pluggable("disk").values()) for _ in range(count)]
    assert len(set(places)) == count
    with pytest.raises(SpecError, match="no free PCI slot"):
        fits.pluggable("disk")


def test_a_board_without_pci_says_what_to_leave_out():
    with pytest.raises(SpecError) as error:
        devices('name = "a"\nmachine_type = "isapc"\n')
    assert "rng, balloon, vmgenid = false" in error.value.hint


@pytest.mark.parametrize("name", ["microvm", "none", "x-remote", "virt", "pcx"])
def test_an_unknown_board_is_refused(name):
    with pytest.raises(SpecError, match="does not know the board") as error:
        Board(name)
    assert error.value.key == "machine_type"


@pytest.mark.parametrize(("controller", "ports"), [("xhci", 15), ("ehci", 6), ("uhci", 2)])
def test_a_full_usb_controller_is_refused(controller, ports):
    board = Board("q35", usb=controller)
    assert {board.usb()["port"] for _ in range(ports)} == {str(n + 1) for n in range(ports)}
    with pytest.raises(SpecError, match=f"has {ports} ports"):
        board.usb()
