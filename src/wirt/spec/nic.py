"""Network cards of the guest and the host backends behind them, one struct per backend."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from wirt.spec.setting import ID_PATTERN, MAC_PATTERN, Index, number, setting, text

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


Backend = User | Unplugged


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
