"""What single options and their combinations become, by name."""

import shlex

import pytest

from tests.qemu import machines
from wirt.qemu.legacy.facts import Facts
from wirt.qemu.legacy.translate import translate
from wirt.qemu.legacy.values import parse, split
from wirt.spec.console import Null, SharesSerial, Stdio, Tcp, UnixSocket, Vnc, Window
from wirt.spec.disk import Geometry
from wirt.spec.nic import Socket, Tap, Unplugged, User, Vde

CAPABILITIES = machines.recorded("7.2")


def read(line, **facts):
    return translate(shlex.split(line), Facts(**facts), CAPABILITIES)


def machine_of(line, **facts):
    translation = read(line, **facts)
    assert translation.refused == ()
    return translation.machine


def status_of(line, option):
    return next(note for note in read(line).notes if note.option == option)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a,b=c", ["a", "b=c"]),
        ("file=a,,b,if=ide", ["file=a,b", "if=ide"]),
        ("a,,,b", ["a,", "b"]),
        (",,,,", [",,"]),
        ("a,", ["a", ""]),
        ("", [""]),
    ],
)
def test_a_doubled_comma_belongs_to_the_value(text, parts):
    assert split(text) == parts


def test_flags_may_stand_alone_and_be_negated():
    values = parse("unix:/x,server,nowait,id=a", first="path")
    assert list(values) == [
        ("path", "unix:/x"), ("server", "on"), ("wait", "off"), ("id", "a"),
    ]  # fmt: skip


def test_a_line_without_options_is_the_pc_of_old():
    machine = machine_of("kvm disk.img")
    assert machine.memory == 128 << 20
    assert [(d.bus, d.media, d.image) for d in machine.disks] == [
        ("ide", "disk", "disk.img"), ("ide", "cdrom", ""), ("floppy", "disk", ""),
    ]  # fmt: skip
    assert machine.nics[0].model == "rtl8139"
    assert machine_of("qemu disk.img").nics[0].model == "e1000"
    assert machine.nics[0].backend == User()
    assert not (machine.rng)
    assert not (machine.balloon)
    assert not (machine.vmgenid)
    assert not (machine.panic_notifier)


def test_one_card_and_one_network_on_a_vlan_are_a_cable():
    machine = machine_of("kvm -net nic,vlan=3,model=e1000 -net tap,vlan=3,ifname=tap0,script=no")
    (nic,) = machine.nics
    assert (nic.hub, nic.model, nic.mac) == (None, "e1000", "52:54:00:12:34:56")
    assert isinstance(nic.backend, Tap)
    uplink = read("kvm -net nic -net tap,fd=17").uplinks["nic0-net"]
    assert uplink == {"type": "tap", "fd": "17"}


def test_more_on_a_vlan_are_a_hub_of_its_number():
    line = "kvm -net nic,vlan=1 -net nic,vlan=1 -net socket,vlan=1,listen=:8010 -net nic -net user"
    first, second, third = machine_of(line).nics
    assert (first.hub, second.hub, third.hub) == (1, 1, None)
    assert first.backend == Socket(listen=":8010")
    assert second.backend == Unplugged()
    assert third.backend == User()


def test_two_networks_on_a_vlan_are_both_on_the_hub():
    machine = machine_of("kvm -net nic -net user -net socket,mcast=230.0.0.1:1234")
    assert machine.nics[0].hub == 0
    words = " ".join(machine.qemu.args)
    assert '"type":"socket"' in words
    assert '"hubid":0' in words


@pytest.mark.parametrize(
    ("line", "warning"),
    [
        ("kvm -net nic", "vlan 0 is not connected to host network"),
        ("kvm -net user,vlan=2", "vlan 2 with no nics"),
        ("kvm -net none -redir tcp:1::2", "there is no user network"),
    ],
)
def test_half_a_vlan_is_warned_of(line, warning):
    assert any(warning in text for text in read(line).warnings)


def test_redirections_are_forwards_of_the_first_user_network():
    line = "kvm -net nic -net user -redir tcp:5555::22 -tftp /srv -bootp pxelinux.0"
    backend = machine_of(line).nics[0].backend
    assert (backend.tftp, backend.bootfile) == ("/srv", "pxelinux.0")
    (forward,) = backend.forwards
    assert (forward.host_address, forward.host_port, forward.guest_port) == ("", 5555, 22)


def test_geometry_boot_and_cache_of_old_drives():
    line = (
        "kvm -drive file=a,,b.img,cyls=100,heads=4,secs=17,trans=lba,cache=off,boot=on,serial=S "
        "-drive file=c.img,if=scsi,bus=0,unit=6 -hdachs 1,2,3"
    )
    machine = machine_of(line)
    first = machine.disks[0]
    assert (first.image, first.cache, first.boot_index, first.serial) == ("a,b.img", "none", 0, "S")
    assert first.geometry == Geometry(1, 2, 3)
    assert (machine.disks[1].bus, machine.disks[1].unit) == ("scsi", 6)
    assert machine.scsi_controller == "lsi53c895a"


def test_what_boots_is_what_the_letters_say():
    boot = machine_of("kvm -boot order=dcn,menu=on -hda a.img").boot
    assert boot.order == ("cdrom", "disk", "network")
    assert boot.menu
    assert machine_of("kvm -boot once=d -hda a.img").boot.once == ("cdrom",)
    drive = machine_of("kvm -boot d -drive file=a.img,boot=on").disks[0]
    assert drive.boot_index is None


@pytest.mark.parametrize("file", ["nbd:host:1024", "http://h/a.iso", 'json:{"driver":"null-co"}'])
def test_what_is_no_file_goes_to_qemu_as_it_is(file):
    machine = machine_of(f"kvm -nodefaults -hda '{file}'")
    assert machine.disks == ()
    assert f"file={file}".replace(",", ",,") in machine.qemu.args[1]


def test_a_directory_as_disk_is_not_written_to():
    words = machine_of("kvm -hda fat:/srv").qemu.args
    assert "snapshot=on" in words[1]
    assert "snapshot=on" not in machine_of("kvm -fda fat:floppy:rw:/srv").qemu.args[1]


def test_nographic_shares_the_terminal_between_port_and_monitor():
    machine = machine_of("kvm -nographic -hda a.img")
    assert machine.serials[0].backend == Stdio()
    assert machine.monitors[0].backend == SharesSerial(0)
    assert machine.displays == ()
    quiet = machine_of("kvm -nographic -daemonize -vnc :1 -hda a.img")
    assert not any(isinstance(port.backend, Stdio) for port in quiet.serials)


def test_windows_need_a_screen():
    assert machine_of("kvm -sdl -full-screen", windows=("sdl",)).displays == (
        Window("sdl", full_screen=True),
    )
    assert machine_of("kvm -sdl", free_display=lambda: 3).displays == (Vnc("127.0.0.1:3"),)
    grab = machine_of("kvm -ctrl-grab -no-quit", windows=("sdl",)).displays[0]
    assert grab.options == ("window-close=off", "grab-mod=rctrl")


def test_ports_and_monitors_of_old():
    line = (
        "kvm -serial tcp::4444,server -serial none -parallel none "
        "-monitor telnet:127.0.0.1:1234,server,nowait,nodelay -qmp unix:/q,server,nowait"
    )
    machine = machine_of(line)
    assert machine.serials[0].backend == Tcp(4444, "0.0.0.0", wait=True)
    assert machine.parallels == ()
    assert machine.monitors[0].backend == Tcp(1234, telnet=True)
    assert machine.monitors[1].backend == UnixSocket("/q")
    assert machine.monitors[1].mode == "control"
    assert machine_of("kvm -serial null -vnc :1").serials[0].backend == Null()


def test_cpus_were_sockets_and_a_wrong_topology_is_made_to_fit():
    assert machine_of("kvm -smp 4").cpu.sockets == 4
    cpu = machine_of("kvm -smp 4,maxcpus=16,sockets=16,cores=2,threads=2").cpu
    assert (cpu.sockets, cpu.cores, cpu.threads, cpu.max_vcpus) == (4, 2, 2, 16)
    assert machine_of("kvm -cpu host").cpu.model == "max"
    assert machine_of("kvm -cpu host", has_kvm=True).cpu.model == "host"
    assert (
        machine_of("kvm -cpu kvm64 -enable-nesting", virtualization="svm").cpu.model == "kvm64,+svm"
    )


def test_numa_nodes_without_memory_share_it():
    nodes = machine_of("kvm -m 100 -smp 2 -numa node,cpus=0 -numa node,cpus=1,mem=30").numa
    assert [node.memory >> 20 for node in nodes] == [70, 30]


def test_switches_of_the_first_kvm_are_dropped_with_a_reason():
    for option in ("no-kvm-irqchip", "no-kvm-pit", "tdf", "no-frame"):
        note = status_of(f"kvm -{option}", f"-{option}")
        assert (note.status, bool(note.why), bool(note.removed_in)) == ("dropped", True, True)
    assert "kvm-pit.lost_tick_policy=discard" in machine_of("kvm -no-kvm-pit-reinjection").qemu.args


def test_clocks_usb_sound_and_the_rest():
    line = (
        "kvm -localtime -rtc-td-hack -usb -usbdevice tablet -usbdevice host:0781:5406 -soundhw all "
        "-balloon virtio -watchdog i6300esb -watchdog-action poweroff -no-acpi -no-hpet -no-reboot"
    )
    machine = machine_of(line)
    assert (machine.rtc.base, machine.rtc.drift_fix) == ("localtime", True)
    assert machine.usb.controller == "uhci"
    assert [device.kind for device in machine.usb.devices] == ["tablet", "host"]
    assert len(machine.sound) == 8
    assert machine.balloon
    assert machine.watchdog.action == "poweroff"
    assert not (machine.acpi)
    assert not (machine.hpet)
    assert machine.actions.reboot == "shutdown"


def test_a_switch_is_a_path_and_never_a_command():
    (nic,) = machine_of("kvm -net nic -net vde,sock=/tmp/my.ctl,port=10,mode=660").nics
    assert nic.backend == Vde("/tmp/my.ctl", 10, "", 0o660)
    for sock in ("cmd://id", "vde://cmd://id", "slirp://", "a b"):
        assert read(f"kvm -net nic -net vde,sock='{sock}'").refused


def test_places_that_a_line_gives_are_kept_and_not_given_twice():
    line = (
        "kvm -net nic,addr=0x7 -net user -device edu,addr=6 -usb -drive file=a,if=virtio,addr=0xa"
    )
    machine = machine_of(line)
    assert machine.nics[0].address == "7"
    assert machine.disks[0].address == "a"


def test_capability_sets_decide_the_form():
    old = translate(
        shlex.split("kvm -runas nobody -chroot /srv -no-fd-bootchk"), Facts(), CAPABILITIES
    )
    assert old.process == ("-runas", "nobody", "-chroot", "/srv")
    assert "-no-fd-bootchk" in old.machine.qemu.args
    new = translate(
        shlex.split("kvm -runas nobody -chroot /srv -no-fd-bootchk"),
        Facts(),
        machines.recorded("10.0"),
    )
    assert new.process == ("-run-with", "user=nobody", "-run-with", "chroot=/srv")
    assert new.machine.machine_type == "pc,fd-bootchk=off"


def test_a_filter_follows_the_network_that_it_names():
    line = (
        "kvm -netdev user,id=n1 -device e1000,netdev=n1 -object filter-dump,id=f,netdev=n1,file=x"
    )
    assert "qom-type=filter-dump,id=f,netdev=nic0-hub,file=x" in machine_of(line).qemu.args
