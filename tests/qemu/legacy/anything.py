"""Lines that nobody published: options of the table with values that people write, or garbage."""

from hypothesis import strategies as st

from wirt.qemu.legacy.options import OPTIONS

FILES = ("a.img", "b.qcow2", "dir/c.img", "with,,comma.img", "d.vmdk", "Ü.img")
VALUES: dict[str, tuple[str, ...]] = {
    "M": ("pc", "pc-0.12", "q35", "isapc", "pc-i440fx-2.1", "versatilepb", "rhel6.0.0"),
    "machine": ("pc,accel=kvm:tcg", "type=q35,usb=on", "pc,kernel_irqchip=off", "pc-1.0"),
    "cpu": ("qemu64", "kvm64", "host", "coreduo", "core2duo,+x2apic", "486", "pentium3,-apic"),
    "smp": ("1", "2", "4,cores=2", "8,maxcpus=16,sockets=16,cores=2", "cpus=3,threads=2"),
    "m": ("64", "256M", "0.5G", "128m", "1"),
    "numa": ("node,mem=64,cpus=0", "node", "node,cpus=0-1,nodeid=1"),
    "name": ("vm1", "Windows XP", "a,process=b", "Ünïcode"),
    "uuid": ("8b14d3a1-0907-e862-4043-498ff86d9ca2", "none"),
    "drive": (
        "file=a.img", "file=b.qcow2,if=virtio,cache=off", "file=a.img,if=scsi,bus=0,unit=6",
        "file=c.img,if=ide,index=1,media=disk,boot=on", "if=ide,media=cdrom,index=2",
        "file=d.img,cyls=100,heads=4,secs=17,trans=lba", "file=e.img,if=floppy,index=1",
        "file=f.img,if=none,id=x", "file=g.img,if=sd", "file=with,,comma.img,snapshot=on",
        "file=h.img,if=virtio,serial=ABC,werror=stop,rerror=report,aio=native,cache=none",
        "file=fat:folder,if=virtio", "file=i.img,if=virtio,readonly=on,addr=0x7",
        "file=j.img,if=mtd", 'file=json:{"driver":"file"\\,"filename":"k.img"}',
        "file=l.img,bps=1048576,iops_rd=100", "file=m.img,media=cdrom,if=virtio",
        "file=n.iso,media=cdrom,if=scsi", "file=,if=ide,media=cdrom", "file=o.img,if=pflash",
        "file=p.img,format=raw,cache=writethrough", "media=floppy",
    ),
    "boot": (
        "c", "d", "n", "cad", "order=dc,menu=on", "once=d,order=c", "menu=off", "z",
        "splash-time=10",
    ),
    "net": (
        "nic", "nic,model=rtl8139,vlan=0", "nic,vlan=1,macaddr=52-54-00-11-22-33,name=eth1",
        "nic,model=ne2k_isa", "nic,model=lance", "nic,model=i82557b,addr=0x9,vectors=3", "user",
        "user,vlan=0,hostfwd=tcp::5555-:22,restrict=y", "user,net=10.1.0.0/24,host=10.1.0.1,vlan=2",
        "user,hostname=old,dns=10.0.2.3,dhcpstart=10.0.2.20,tftp=folder,bootfile=/p",
        "tap,ifname=tap3,script=no", "tap,vlan=1,script=no,sndbuf=1048576",
        "socket,vlan=1,listen=:8010", "socket,mcast=230.0.0.1:1234", "vde,sock=/nowhere",
        "dump,vlan=0,file=x.pcap,len=100", "none", "user,guestfwd=tcp:10.0.2.100:1234-cmd:cat",
        "user,channel=4444:null", "nic,vlan=300", "user,vlan=300", "nic,macaddr=01:00:00:00:00:00",
        "socket,udp=127.0.0.1:1,localaddr=127.0.0.1:2",
    ),
    "netdev": (
        "user,id=n0", "tap,id=n1,script=no", "socket,id=n2,listen=:8011", "hubport,id=h,hubid=3",
    ),
    "device": (
        "e1000,netdev=n0", "virtio-net-pci,netdev=n1,vectors=4,mac=52:54:00:00:00:09",
        "virtio-blk-pci,drive=x", "ide-drive,drive=x,bus=ide.0,unit=0", "virtio-balloon",
        "usb-tablet", "AC97", "virtio-serial", "rtl8139,vlan=0,addr=0x8", "usb-ehci,id=ehci",
        "nonsense", '{"driver":"edu","id":"e"}', "virtio-net-pci,netdev=h",
        "isa-debugcon,iobase=0x402,chardev=c0", "ide-cd", "scsi-disk,drive=x",
    ),
    "redir": ("tcp:5556::80", "udp:5557:10.0.2.15:53", "tcp:1"),
    "tftp": ("folder",),
    "bootp": ("/pxe",),
    "smb": ("folder",),
    "vga": ("std", "cirrus", "vmware", "none", "xenfb", "qxl"),
    "vnc": (
        ":1", "127.0.0.1:2,password", "none", ":3,share=ignore", "unix:v.sock", "0.0.0.0:4,to=9",
        "x",
    ),
    "display": ("none", "sdl", "curses", "gtk,full-screen=on"),
    "k": ("de", "en-us"),
    "serial": (
        "null", "none", "vc", "pty", "file:s.log", "tcp:127.0.0.1:4444,server,nowait", "mon:stdio",
        "stdio", "telnet::4445,server,nowait,nodelay", "unix:s.sock,server,nowait",
        "udp:127.0.0.1:4446@:4447", "/dev/ttyS9", "vc:80Cx25C", "COM1", "msmouse",
    ),
    "parallel": ("none", "null", "vc", "file:p.log", "/dev/parport9"),
    "monitor": (
        "stdio", "null", "none", "vc", "unix:m.sock,server,nowait",
        "telnet:127.0.0.1:4448,server,nowait", "pty",
    ),
    "qmp": ("unix:q.sock,server,nowait", "tcp:127.0.0.1:4449,server,nowait"),
    "chardev": ("null,id=c0", "socket,id=c1,path=c1.sock,server,nowait", "file,id=c2,path=c2.log"),
    "mon": ("chardev=c0", "c1,mode=control", "nothing"),
    "virtioconsole": ("null",),
    "usbdevice": (
        "tablet", "mouse", "keyboard", "disk:u.img", "disk:format=raw:v.img", "host:1234:5678",
        "host:9.9", "serial:null", "serial:vendorid=0x1,productid=0x2:null", "net:vlan=0",
        "wacom-tablet", "bt:hci", "ccid",
    ),
    "rtc": ("base=localtime", "base=2006-06-17T16:01:21,clock=vm", "driftfix=slew", "clock=x"),
    "startdate": ("2006-06-17", "now", "2006-6-7T1:02:03", "yesterday"),
    "clock": ("dynticks", "?"),
    "icount": ("auto", "3", "shift=7"),
    "soundhw": ("all", "ac97", "sb16,es1370", "pcspk", "hda", "x"),
    "balloon": ("virtio", "none", "x"),
    "watchdog": ("i6300esb", "ib700", "x"),
    "watchdog-action": ("reset", "poweroff", "x"),
    "pcidevice": ("host=09:00.0", "host=x"),
    "tb-size": ("32",),
    "kvm-shadow-memory": ("8M",),
    "hdachs": ("100,4,17", "100,4,17,lba", "1"),
    "kernel": ("vmlinuz",),
    "initrd": ("initrd.img",),
    "append": ("root=/dev/hda quiet",),
    "virtfs": ("local,path=folder,security_model=none,mount_tag=tag",),
    "D": ("debug.log",),
    "d": ("guest_errors",),
    "smbios": ("type=1,serial=X",),
    "pidfile": ("vm.pid",),
    "realtime": ("mlock=off",),
    "g": ("1024x768",),
    "global": ("PIIX4_PM.disable_s3=1",),
    "bios": ("bios-256k.bin",),
    "rotate": ("90",),
    "nvram": ("x",),
    "cpu-vendor": ("intel",),
    "prom-env": ("a=b",),
    "bt": ("hci,host",),
    "writeconfig": ("out.cfg",),
    "audiodev": ("none,id=snd",),
    "action": ("reboot=shutdown",),
    "accel": ("tcg", "kvm", "tcg,thread=single"),
    "object": ("iothread,id=io0", "rng-random,id=r,filename=/dev/urandom"),
    "msg": ("timestamp=on",),
}  # fmt: skip
"""What people write behind an option."""

ALONE = {
    "h",
    "help",
    "version",
    "audio-help",
    "S",
    "daemonize",
    "preconfig",
    "xen-attach",
    "xen-create",
}
"""Flags that ask something, or that the tests decide themselves."""

NOT_STARTED = {
    "only-migratable",
    "preconfig",
    "runas",
    "chroot",
    "loadvm",
    "incoming",
    "gdb",
    "s",
    "readconfig",
    "dtb",
}


def sane() -> st.SearchStrategy[list[str]]:
    """Return a strategy for lines with values that once were right, or nearly."""
    options = [
        _with(option.name, VALUES.get(option.name, FILES if _takes_file(option.name) else ()))
        for option in OPTIONS
        if option.name not in ALONE | NOT_STARTED
        and (not option.takes_value or _known(option.name))
    ]
    return st.lists(st.one_of(options), min_size=1, max_size=7).map(_line)


def mad() -> st.SearchStrategy[list[str]]:
    """Return a strategy for lines with any text behind any option."""
    names = st.sampled_from([option.name for option in OPTIONS]) | st.text(max_size=8)
    text = st.text(alphabet=st.characters(exclude_characters="\x00", codec="utf-8"), max_size=40)
    pieces = st.sampled_from([value for values in VALUES.values() for value in values])
    words = st.lists(names.map(lambda name: f"-{name}") | text | pieces, max_size=8)
    return words.map(lambda line: ["kvm", *line])


def _takes_file(name: str) -> bool:
    return name in {
        "hda",
        "hdb",
        "hdc",
        "hdd",
        "cdrom",
        "fda",
        "fdb",
        "sd",
        "pflash",
        "(disk)",
        "mtdblock",
    }


def _known(name: str) -> bool:
    return name in VALUES or _takes_file(name)


def _with(name: str, values: tuple[str, ...]) -> st.SearchStrategy[list[str]]:
    if not values:
        return st.just([f"-{name}"])
    value = st.sampled_from(values)
    return value.map(lambda text: [text] if name == "(disk)" else [f"-{name}", text])


def _line(groups: list[list[str]]) -> list[str]:
    return ["kvm", *(word for group in groups for word in group)]
