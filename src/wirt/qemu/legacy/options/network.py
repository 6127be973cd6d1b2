"""Networks as they were: vlans, cards and backends, and the short forms for user networks."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, get_args

import msgspec

from wirt.qemu.legacy.draft import Card, Draft, Wire
from wirt.qemu.legacy.line import Given
from wirt.qemu.legacy.note import Outcome, Refused
from wirt.qemu.legacy.option import Option, valued
from wirt.qemu.legacy.options.drives import slot
from wirt.qemu.legacy.values import Values, number, parse, size
from wirt.spec.nic import (
    ADDRESS_PATTERN,
    INTERFACE_PATTERN,
    Dgram,
    Forward,
    Model,
    Passt,
    Socket,
    Stream,
    Tap,
    User,
    Vde,
)
from wirt.spec.setting import ID_PATTERN

MODELS = frozenset(get_args(Model))
_SAME = {
    "virtio-net": "virtio", "virtio-net-pci": "virtio", "virtio-net-device": "virtio",
    "usb-net": "usb", "ne2k": "ne2k_pci", "ne2k-pci": "ne2k_pci", "ne2k-isa": "ne2k_isa",
    "e1000-82540em": "e1000", "virtio-net-pci-non-transitional": "virtio",
    "virtio-net-pci-transitional": "virtio",
}  # fmt: skip
_OTHER_BOARDS = {
    "smc91c111": "boards of ARM (versatilepb, integratorcp)",
    "lan9118": "boards of ARM (vexpress, realview)", "stellaris": "the Stellaris board of ARM",
    "lance": "SPARC stations (SS-5)", "mcf_fec": "the ColdFire board mcf5208evb",
    "mcf-fec": "the ColdFire board mcf5208evb", "mipsnet": "the mipssim board",
    "xgmac": "the Highbank board of ARM", "etraxfs-eth": "the ETRAX board",
    "dp83932": "the Jazz boards of MIPS", "xilinx-ethlite": "boards with MicroBlaze",
    "opencores_eth": "boards of Xtensa", "sunhme": "SPARC64 machines", "spapr-vlan": "POWER",
}  # fmt: skip
_MAC = re.compile(r"([0-9a-fA-F]{1,2})[:-]" * 5 + r"([0-9a-fA-F]{1,2})")
_USER_KEYS = {
    "net": "network", "ip": "network", "host": "host", "dns": "dns", "dhcpstart": "dhcp_start",
    "hostname": "hostname", "domainname": "domain", "tftp": "tftp", "bootfile": "bootfile",
    "bootp": "bootfile", "smb": "smb",
}  # fmt: skip
_LOCAL_SWITCH = "/var/run/vde.ctl"
_UP = ("/etc/kvm/kvm-ifup", "/etc/qemu-ifup")
_DOWN = ("/etc/kvm/kvm-ifdown", "/etc/qemu-ifdown")
_SCRIPTS = ("", "no")


def net(draft: Draft, given: Given) -> Outcome | None:
    """A card or a backend on a vlan."""
    values = parse(given.value, first="type")
    kind = values.take("type")
    draft.networked = True
    if kind == "none":
        return Outcome("same", today="-nic none")
    said = values.has("vlan")
    vlan = number(values.take("vlan", default="0"), "vlan", 0, (1 << 31) - 1)
    why = "vlan= went in 3.0: a hub of that number is what it was" if said else ""
    if kind == "nic":
        return _nic(draft, values, vlan, why)
    if kind == "dump":
        return _dump(draft, values, vlan)
    if kind == "channel":
        return _channel(draft, values)
    wire = _wire(draft, kind, values)
    wire.vlan = vlan
    draft.wires.append(wire)
    remarks = "; ".join(filter(None, (why, _remark(draft, wire))))
    return Outcome(today=f"-netdev {kind}", why=remarks)


def _nic(draft: Draft, values: Values, vlan: int, why: str) -> Outcome | None:
    model = values.take("model")
    if model in {"?", "help"}:
        draft.query = ["-nic", "model=help"]
        return None
    card = Card(model=nic_model(model), vlan=vlan, mac=mac(values.take("macaddr", "mac")))
    card.id = identifier(values.take("name", "id"))
    address = values.take("addr", "devaddr")
    card.address = slot(address) if address else ""
    vectors = values.take("vectors")
    if vectors:
        number(vectors, "vectors", 0, 1 << 16)
    _nothing_left(values, "-net nic")
    draft.cards.append(card)
    return Outcome(today=f"-device {model or 'rtl8139'},netdev=", why=why)


def nic_model(name: str) -> str:
    """Return the spec's name of a card. Raises Refused for cards of other boards."""
    model = _SAME.get(name, name)
    if model in _OTHER_BOARDS:
        raise Refused(
            f"the {name} is not a card for a PC: it belongs to {_OTHER_BOARDS[model]}",
            "model=rtl8139 for old guests, model=virtio for all since 2008",
        )
    if model and model not in MODELS:
        raise Refused(f"QEMU never had a card {name[:30]!r}", ", ".join(sorted(MODELS)))
    return model


def mac(text: str) -> str:
    """Return a MAC address with colons. Raises Refused."""
    if not text:
        return ""
    match = _MAC.fullmatch(text)
    if not match:
        raise Refused(f"{text[:40]!r} is not a MAC address", "like 52:54:00:12:34:56")
    if int(match[1], 16) & 1:
        raise Refused(
            f"{text} is a multicast address, which no card can have",
            "an even first byte, like 52:54:00:12:34:56",
        )
    return ":".join(part.zfill(2) for part in match.groups())


def identifier(name: str) -> str:
    """Return ``name`` if a device can have it, else nothing: wirt numbers those."""
    return name if re.match(ID_PATTERN, name) else ""


def _nothing_left(values: Values, what: str) -> None:
    left = [key for key, _ in values]
    if left:
        raise Refused(f"{what} never had {left[0][:40]}=")


def _dump(draft: Draft, values: Values, vlan: int) -> Outcome | None:
    file = values.take("file", default=f"qemu-vlan{vlan}.pcap")
    draft.dumps.append((vlan, file, number(values.take("len", default="65536"), "len")))
    _nothing_left(values, "-net dump")
    return Outcome(today="-object filter-dump,netdev=,file=,maxlen=")


def _channel(draft: Draft, values: Values) -> Outcome | None:
    """``-net channel,PORT:DEV``: a guest's connection to 10.0.2.4."""
    (text, _), *_ = [*values, ("", "")]
    draft.user.setdefault("guest_forwards", []).append(channel(text))
    return Outcome(today="guestfwd=")


def channel(text: str) -> str:
    """Return ``PORT:DEV`` of old as a guestfwd."""
    port, colon, device = text.partition(":")
    if not colon:
        raise Refused(f"{text[:40]!r}: PORT:DEVICE is expected")
    return f"tcp:10.0.2.4:{number(port, 'port', 1, 65535)}-{device}"


def _wire(draft: Draft, kind: str, values: Values) -> Wire:
    if kind not in _WIRES:
        raise Refused(f"{kind[:30]!r} is no network", ", ".join(sorted(_WIRES)))
    wire = Wire(id=values.take("id", "name"))
    if wire.id in draft.facts.backends:
        wire.backend = draft.facts.backends[wire.id]
        wire.uplink = {"type": kind, **dict(values)}
        return wire
    _WIRES[kind](draft, values, wire)
    return wire


def _user(draft: Draft, values: Values, wire: Wire) -> None:
    found: dict[str, Any] = {}
    for key, setting in _USER_KEYS.items():
        text = values.take(key)
        if text:
            found[setting] = text
    found["restrict"] = values.has("restrict") and values.flag("restrict")
    forwards = [forward(text) for text in values.take_all("hostfwd")]
    forwards += [redirection(text) for text in values.take_all("redir")]
    guests = values.take_all("guestfwd") + [channel(t) for t in values.take_all("channel")]
    found.update(forwards=tuple(forwards), guest_forwards=tuple(guests))
    if not re.fullmatch(r"[0-9./]*", found.get("network", "")):
        raise Refused(f"net={found['network'][:40]} is not a network", "like 10.0.2.0/24")
    for key in ("tftp", "smb"):
        if key in found:
            found[key] = draft.facts.own_path(found[key])
    if found.get("smb") and not draft.facts.has_samba:
        del found["smb"]
        draft.warnings.append("smb= is left out: no samba here (apt install samba)")
    extra = [(key, text) for key, text in values if key.startswith(("ipv", "tftp-", "smbserver"))]
    for key, _ in extra:
        values.take(key)
    _nothing_left(values, "-net user")
    wire.backend = User(**found)


_FORWARD = re.compile(
    r"(?:(?P<protocol>tcp|udp)?:)?(?P<host>[0-9.]*|\[[0-9a-fA-F:]+\]|[\w.-]+)?:(?P<port>\d{1,5})"
    r"-(?P<guest>[0-9.]*):(?P<guest_port>\d{1,5})"
)


def forward(text: str) -> Forward:
    """Return a ``hostfwd``. Raises Refused."""
    match = _FORWARD.fullmatch(text)
    if not match:
        raise Refused(f"hostfwd={text[:60]!r}", "hostfwd=tcp::HOSTPORT-:GUESTPORT")
    return _forward(match)


def redirection(text: str) -> Forward:
    """Return a ``-redir tcp:HOSTPORT:[GUEST]:GUESTPORT``. Raises Refused."""
    match = re.fullmatch(
        r"(?:(?P<protocol>tcp|udp)?:)(?P<host>)(?P<port>\d{1,5}):(?P<guest>[0-9.]*)"
        r":(?P<guest_port>\d{1,5})",
        text,
    )
    if not match:
        raise Refused(f"-redir {text[:60]!r}", "-redir tcp:HOSTPORT:[GUEST]:GUESTPORT")
    return _forward(match)


def _forward(match: re.Match[str]) -> Forward:
    host = (match["host"] or "").strip("[]")
    if host == "localhost":
        host = "127.0.0.1"
    if not re.fullmatch(r"[0-9A-Fa-f.:]*", host):
        raise Refused(f"the address {host} must be a number", "127.0.0.1 or nothing")
    return Forward(
        host_port=number(match["port"], "port", 0, 65535),
        guest_port=number(match["guest_port"], "port", 1, 65535),
        protocol="udp" if match["protocol"] == "udp" else "tcp",
        host_address=host,
        guest_address=match["guest"] or "",
    )


def _tap(draft: Draft, values: Values, wire: Wire) -> None:
    name = values.take("ifname")
    if not re.match(INTERFACE_PATTERN, name):
        raise Refused(f"ifname={name[:30]} is not a name of an interface")
    queues = values.take("fds", "vhostfds", "queues")
    if queues:
        raise Refused("several queues are not modelled", "one fd=")
    fd, vhost_fd = values.take("fd"), values.take("vhostfd")
    script = values.take("script", default=_first(draft, _UP))
    down = values.take("downscript", default=_first(draft, _DOWN))
    if not fd and script not in _SCRIPTS:
        draft.need(script, "the script")
    values.take("helper")
    bridge = values.take("br")
    vhost = values.has("vhost") and values.flag("vhost")
    offload = values.flag("vnet_hdr", default=True)
    buffer = values.take("sndbuf")
    values.take("vhostforce", "poll-us")
    _nothing_left(values, "-net tap")
    vhost = vhost and draft.facts.has_vhost
    scripts = [text if text not in _SCRIPTS else "no" for text in (script, down)]
    uplink: dict[str, Any] = {"type": "tap"}
    if fd:
        uplink["fd"] = fd
    else:
        uplink.update(script=scripts[0], downscript=scripts[1])
    if name:
        uplink["ifname"] = name
    if vhost:
        uplink["vhost"] = True
    if vhost and vhost_fd:
        uplink["vhostfd"] = vhost_fd
    if not offload:
        uplink["vnet_hdr"] = False
    if buffer:
        uplink["sndbuf"] = size(buffer, "sndbuf", default_unit="")
    wire.uplink = uplink
    wire.backend = Tap(
        interface=name,
        bridge=bridge if re.match(INTERFACE_PATTERN, bridge) else "",
        script="" if fd or scripts[0] == "no" else scripts[0],
        down_script="" if fd or scripts[1] == "no" else scripts[1],
        vhost="on" if vhost else "off",
        offload=offload,
        send_buffer=size(buffer, "sndbuf", default_unit="") if buffer else 0,
    )


def _first(draft: Draft, scripts: tuple[str, ...]) -> str:
    """Return the script of this distribution: of Debian's KVM first, then QEMU's own."""
    return next((path for path in scripts if draft.facts.exists(path)), scripts[-1])


def _bridge(_draft: Draft, values: Values, wire: Wire) -> None:
    bridge = values.take("br", default="br0")
    if not re.match(INTERFACE_PATTERN, bridge):
        raise Refused(f"br={bridge[:30]} is not a name of a bridge")
    helper = values.take("helper")
    wire.uplink = {"type": "bridge", "br": bridge, **({"helper": helper} if helper else {})}
    wire.backend = Tap(bridge=bridge)


def _socket(_draft: Draft, values: Values, wire: Wire) -> None:
    fd = values.take("fd")
    if fd:
        wire.words = [("type", "socket"), ("fd", fd)]
        return
    keys = {"listen": "listen", "connect": "connect", "mcast": "multicast", "udp": "udp",
            "localaddr": "local_address"}  # fmt: skip
    found = {setting: values.take(key) for key, setting in keys.items()}
    _nothing_left(values, "-net socket")
    for key, text in found.items():
        if not re.match(ADDRESS_PATTERN, text):
            raise Refused(f"{key}={text[:40]} is not ADDRESS:PORT")
    if not any(found[key] for key in ("listen", "connect", "multicast", "udp")):
        raise Refused("a socket needs listen=, connect=, mcast= or udp=")
    wire.backend = Socket(**found)


def _vde(draft: Draft, values: Values, wire: Wire) -> None:
    path = values.take("sock", default=_LOCAL_SWITCH).removeprefix("vde://")
    if "://" in path or not re.match(r"^/?[\w./+@-]+$", path):
        raise Refused(
            f"sock={path[:40]} is not the directory of a switch",
            "a path; what vdeplug would run as a command is never passed on",
        )
    draft.need(path, "the switch")
    port = number(values.take("port", default="0"), "port", 0, 65535)
    mode = values.take("mode")
    group = values.take("group")
    if not re.match(r"^[\w.-]*$", group):
        raise Refused(f"group={group[:30]} is no group")
    _nothing_left(values, "-net vde")
    wire.backend = Vde(path, port, group, _octal(mode) if mode else 0)


def _octal(text: str) -> int:
    if not re.fullmatch(r"0?[0-7]{1,3}", text):
        raise Refused(f"mode={text[:20]} is not an octal mode", "like 0660")
    return int(text, 8)


def _stream(draft: Draft, values: Values, wire: Wire) -> None:
    address, path = _end(draft, values, "addr")
    server = values.flag("server")
    wire.backend = Stream(path=path, address=address, server=server)
    _as_words_unless_empty(values, wire, "stream")


def _dgram(draft: Draft, values: Values, wire: Wire) -> None:
    local, local_path = _end(draft, values, "local")
    remote, remote_path = _end(draft, values, "remote")
    wire.backend = Dgram(local_path, remote_path, local, remote)
    _as_words_unless_empty(values, wire, "dgram")


def _end(draft: Draft, values: Values, key: str) -> tuple[str, str]:
    kind = values.take(f"{key}.type")
    if kind == "unix":
        return "", draft.facts.own_path(values.take(f"{key}.path"))
    if kind == "inet":
        return f"{values.take(f'{key}.host')}:{values.take(f'{key}.port')}", ""
    return "", ""


def _as_words_unless_empty(values: Values, wire: Wire, kind: str) -> None:
    if list(values):
        wire.backend = None
        wire.words = [("type", kind), *values]


def _passt(_draft: Draft, _values: Values, wire: Wire) -> None:
    wire.backend = Passt()


def _words(kind: str) -> Callable[[Draft, Values, Wire], None]:
    def act(_draft: Draft, values: Values, wire: Wire) -> None:
        wire.words = [("type", kind), *values]

    return act


_WIRES: dict[str, Callable[[Draft, Values, Wire], None]] = {
    "user": _user,
    "tap": _tap,
    "bridge": _bridge,
    "socket": _socket,
    "vde": _vde,
    "stream": _stream,
    "dgram": _dgram,
    "passt": _passt,
    "l2tpv3": _words("l2tpv3"),
    "vhost-user": _words("vhost-user"),
    "vhost-vdpa": _words("vhost-vdpa"),
}


def _remark(draft: Draft, wire: Wire) -> str:
    if isinstance(wire.backend, Tap) and wire.uplink.get("type") == "tap":
        return "the script is run by QEMU, as it was" if "script" in wire.uplink else ""
    return draft.warnings[-1] if draft.warnings and isinstance(wire.backend, User) else ""


def netdev(draft: Draft, given: Given) -> Outcome | None:
    """A backend with a name."""
    if given.value in {"?", "help"}:
        draft.query = ["-netdev", "help"]
        return None
    values = parse(given.value, first="type")
    kind = values.take("type")
    draft.networked = True
    if given.value.startswith("{") and values.has("mode"):  # a number there, octal elsewhere
        mode = number(values.take("mode"), "mode", 0, 0o777)
        values.pairs.append(("mode", f"0{mode:o}"))
    if kind == "hubport":
        hub = number(values.take("hubid"), "hubid", 0, (1 << 31) - 1)
        draft.hub_ports[values.take("id")] = (hub, values.take("netdev"))
        return Outcome("same")
    wire = _wire(draft, kind, values)
    if not wire.id:
        raise Refused("a -netdev needs id=")
    draft.wires.append(wire)
    return Outcome("same", why=_remark(draft, wire))


def nic(draft: Draft, given: Given) -> Outcome | None:
    """A card and its backend at once."""
    values = parse(given.value, first="type")
    kind = values.take("type", default="user")
    draft.networked = True
    if values.has("model") and values.pairs and dict(values.pairs)["model"] in {"help", "?"}:
        draft.query = ["-nic", "model=help"]
        return None
    if kind == "none":
        return Outcome("same")
    name = draft.fresh("-nic")
    card = Card(nic_model(values.take("model")), mac(values.take("mac")), netdev=name)
    address = values.take("addr")
    card.address = slot(address) if address else ""
    wire = _wire(draft, kind, values)
    card.id, wire.id = identifier(wire.id), name
    draft.cards.append(card)
    draft.wires.append(wire)
    return Outcome("same")


def redir(draft: Draft, given: Given) -> Outcome | None:
    """A port of the host that reaches the guest."""
    draft.redirections.append(redirection(given.value))
    return Outcome(today="-netdev user,hostfwd=")


def for_user(setting: str) -> Callable[[Draft, Given], Outcome | None]:
    """Return the act of ``-tftp`` and its like: a setting of all user networks."""

    def act(draft: Draft, given: Given) -> Outcome | None:
        if setting == "smb" and not draft.facts.has_samba:
            return Outcome("dropped", why="there is no samba here: apt install samba, or share "
                           "files over ssh")  # fmt: skip
        draft.user[setting] = given.value
        return None

    return act


def merged(user: User, common: dict[str, Any], redirections: list[Forward]) -> User:
    """Return a user network with what the line says of all of them."""
    fields = {key: text for key, text in common.items() if key != "guest_forwards"}
    guests = (*user.guest_forwards, *common.get("guest_forwards", ()))
    forwards = (*user.forwards, *redirections)
    return msgspec.structs.replace(user, **fields, forwards=forwards, guest_forwards=guests)


OPTIONS: tuple[Option, ...] = (
    valued("net", "0.8", "", "a card or a network on a vlan", net, "-netdev and -device"),
    valued("netdev", "0.12", "", "a network backend", netdev),
    valued("nic", "2.12", "", "a card and its network", nic, "-netdev and -device"),
    valued(
        "redir", "0.8", "3.1", "a host port that reaches the guest", redir, "-netdev user,hostfwd="
    ),
    valued(
        "tftp", "0.8", "3.1", "directory served by TFTP", for_user("tftp"), "-netdev user,tftp="
    ),
    valued(
        "bootp",
        "0.9",
        "3.1",
        "boot file named by DHCP",
        for_user("bootfile"),
        "-netdev user,bootfile=",
    ),
    valued(
        "smb", "0.8", "3.1", "directory shared with Windows", for_user("smb"), "-netdev user,smb="
    ),
)
