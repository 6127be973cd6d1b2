"""Network cards of the guest and the host backends behind them, one struct per backend."""

from typing import Annotated, Literal

import msgspec

from wirt.spec.setting import (
    ID_PATTERN,
    MAC_PATTERN,
    NAME_PATTERN,
    SLOT_PATTERN,
    Index,
    number,
    setting,
    size,
    text,
)

INTERFACE_PATTERN = r"^([A-Za-z0-9][A-Za-z0-9._-]{0,14})?$"
"""A network interface of Linux (at most 15 bytes), without the names that mean directories."""

ADDRESS_PATTERN = r"^([\w.-]*|\[[0-9A-Fa-f:.]+\])?(:\d{1,5})?$"

Model = Literal[
    "virtio",
    "e1000",
    "e1000e",
    "rtl8139",
    "ne2k_pci",
    "ne2k_isa",
    "pcnet",
    "i82550",
    "i82551",
    "i82557a",
    "i82557b",
    "i82557c",
    "i82558a",
    "i82558b",
    "i82559a",
    "i82559b",
    "i82559c",
    "i82559er",
    "i82562",
    "i82801",
    "e1000-82544gc",
    "e1000-82545em",
    "tulip",
    "vmxnet3",
    "usb",
]


class Forward(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A host port whose connections reach the guest."""

    host_port: Annotated[int, number("Port on the host; 0: wirt picks a free one", ge=0, le=65535)]
    guest_port: Annotated[int, number("Port in the guest", ge=1, le=65535)]
    protocol: Annotated[Literal["tcp", "udp"], setting("Protocol")] = "tcp"
    host_address: Annotated[str, text("Address on the host", pattern=r"^[0-9A-Fa-f.:]*$")] = (
        "127.0.0.1"
    )
    guest_address: Annotated[str, text("Address in the guest", pattern=r"^[0-9A-Fa-f.:]*$")] = ""


class User(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="user", omit_defaults=True):
    """Network without privileges: QEMU's own NAT, DHCP and DNS (slirp)."""

    forwards: Annotated[tuple[Forward, ...], setting("Host ports that reach the guest")] = ()
    guest_forwards: Annotated[
        tuple[str, ...], setting("Guest connections that reach the host, as QEMU's guestfwd")
    ] = ()
    network: Annotated[str, text("Network of the guest", pattern=r"^[0-9./]*$")] = ""
    host: Annotated[str, setting("Address of the host as the guest sees it")] = ""
    dns: Annotated[str, setting("Address of the DNS server as the guest sees it")] = ""
    dhcp_start: Annotated[str, setting("First address that DHCP gives")] = ""
    hostname: Annotated[str, text("Host name that DHCP gives")] = ""
    domain: Annotated[str, text("Domain that DHCP gives")] = ""
    restrict: Annotated[bool, setting("Isolate the guest from host and world")] = False
    tftp: Annotated[str, text("Directory served by TFTP")] = ""
    bootfile: Annotated[str, text("Boot file that DHCP gives")] = ""
    smb: Annotated[str, text("Directory served by SMB (needs samba)")] = ""


class Unplugged(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="none"):
    """A card without a cable."""


class Tap(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="tap", omit_defaults=True):
    """A TAP interface of the host's network namespace, made by wirt and passed as descriptor."""

    interface: Annotated[
        str, text("Name of the interface; empty: wirt picks one", pattern=INTERFACE_PATTERN)
    ] = ""
    bridge: Annotated[
        str, text("Linux bridge that it joins; empty: none", pattern=INTERFACE_PATTERN)
    ] = ""
    script: Annotated[str, text("Program that configures it (the old /etc/qemu-ifup)")] = ""
    down_script: Annotated[str, text("Program that undoes that (the old /etc/qemu-ifdown)")] = ""
    vhost: Annotated[
        Literal["auto", "on", "off"], setting("Let the kernel move packets (vhost-net)")
    ] = "auto"
    offload: Annotated[bool, setting("Pass offloads to the guest (vnet_hdr)")] = True
    send_buffer: Annotated[int, size("Send buffer; 0: unlimited")] = 0


class Network(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="network"):
    """A bridge network of wirt's (``wirt net create``): DHCP, names, NAT."""

    name: Annotated[str, text("Name of the network", pattern=NAME_PATTERN)]


class Switch(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="switch", omit_defaults=True
):
    """A port of a VDE switch of wirt's (``wirt switch create``)."""

    name: Annotated[str, text("Name of the switch", pattern=NAME_PATTERN)]
    vlan: Annotated[int, number("802.1Q VLAN of the port; 0: untagged", ge=0, le=4094)] = 0


class Vde(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="vde", omit_defaults=True):
    """A VDE switch that somebody else runs."""

    path: Annotated[str, text("Directory of the switch's sockets", pattern=r"^/?[\w./+@-]+$")]
    """Always given to QEMU as ``vde://PATH``: a bare ``sock=`` may name a command to run."""
    port: Annotated[int, number("Port of the switch; 0: any", ge=0, le=65535)] = 0
    group: Annotated[str, text("Group of the port's socket", pattern=r"^[\w.-]*$")] = ""
    mode: Annotated[int, number("Mode of the port's socket; 0: default", ge=0, le=0o777)] = 0


class Socket(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="socket", omit_defaults=True
):
    """QEMU's old ``socket`` backend: a TCP, UDP or multicast wire between QEMUs."""

    listen: Annotated[str, text("ADDRESS:PORT to accept one peer on", pattern=ADDRESS_PATTERN)] = ""
    connect: Annotated[str, text("ADDRESS:PORT of a listening peer", pattern=ADDRESS_PATTERN)] = ""
    multicast: Annotated[str, text("GROUP:PORT that all peers share", pattern=ADDRESS_PATTERN)] = ""
    udp: Annotated[str, text("ADDRESS:PORT of a UDP peer", pattern=ADDRESS_PATTERN)] = ""
    local_address: Annotated[
        str, text("Own address (multicast) or ADDRESS:PORT (udp)", pattern=ADDRESS_PATTERN)
    ] = ""


class Stream(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="stream", omit_defaults=True
):
    """A wire over a stream socket: unix path or TCP."""

    path: Annotated[str, text("Path of a unix socket")] = ""
    address: Annotated[str, text("ADDRESS:PORT", pattern=ADDRESS_PATTERN)] = ""
    server: Annotated[bool, setting("Listen instead of connect")] = False


class Dgram(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="dgram", omit_defaults=True
):
    """A wire over a datagram socket: a pair of unix paths or of UDP addresses, or a group."""

    local_path: Annotated[str, text("Own unix socket")] = ""
    remote_path: Annotated[str, text("Unix socket of the peer")] = ""
    local: Annotated[str, text("Own ADDRESS:PORT", pattern=ADDRESS_PATTERN)] = ""
    remote: Annotated[
        str, text("ADDRESS:PORT of the peer or the multicast group", pattern=ADDRESS_PATTERN)
    ] = ""


class Passt(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="passt", omit_defaults=True
):
    """Network without privileges by passt, which copies the host's addresses to the guest."""

    forwards: Annotated[tuple[Forward, ...], setting("Host ports that reach the guest")] = ()


Backend = User | Tap | Network | Switch | Vde | Socket | Stream | Dgram | Passt | Unplugged


class Rate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Limits of a card in bytes a second; 0 means none."""

    to_guest: Annotated[int, size("Bytes a second that reach the guest")] = 0
    from_guest: Annotated[int, size("Bytes a second that leave the guest")] = 0


class Nic(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A network card."""

    model: Annotated[Model, setting("Card that the guest sees")] = "virtio"
    mac: Annotated[
        str, text("MAC address; empty: wirt makes a stable one", pattern=MAC_PATTERN)
    ] = ""
    id: Annotated[str, text("Identifier of the device", pattern=ID_PATTERN)] = ""
    backend: Annotated[Backend, setting("What the card is connected to")] = User()
    boot_index: Annotated[Index | None, setting("Place in the boot order, lowest first")] = None
    hub: Annotated[Index | None, setting("Hub that card and backend share (the old vlan=)")] = None
    rate: Annotated[Rate | None, setting("Limits")] = None
    link: Annotated[bool, setting("The cable is plugged in")] = True
    address: Annotated[
        str, text("PCI slot on the root bus; empty: given by wirt", pattern=SLOT_PATTERN)
    ] = ""
