"""One line for one Ethernet frame: who to whom, and what. Frames are hostile, lines harmless.

IEEE 802.3 with 802.1Q tags; ARP (RFC 826), IPv4 (RFC 791), IPv6 (RFC 8200), TCP, UDP, ICMP.
What is cut short is described as far as it goes; nothing here raises.
"""

from __future__ import annotations

import ipaddress
import struct

_ARP, _IPV4, _IPV6, _VLANS = 0x0806, 0x0800, 0x86DD, {0x8100, 0x88A8}
_MOST_TAGS = 4
_ICMP = {0: "echo reply", 3: "unreachable", 5: "redirect", 8: "echo request", 11: "too old"}
_ICMP6 = {
    1: "unreachable", 2: "too big", 128: "echo request", 129: "echo reply",
    133: "router solicitation", 134: "router advertisement",
    135: "neighbour solicitation", 136: "neighbour advertisement",
}  # fmt: skip
_FLAGS = ((0x02, "SYN"), (0x10, "ACK"), (0x01, "FIN"), (0x04, "RST"), (0x08, "PSH"))
_UDP_NAMES = {53: "DNS", 67: "DHCP", 68: "DHCP", 69: "TFTP", 123: "NTP", 5353: "mDNS"}
_TCP, _UDP, _ICMP_PROTOCOL, _ICMP6_PROTOCOL = 6, 17, 1, 58


def summary(frame: bytes) -> str:
    """Return the line."""
    if len(frame) < 14:
        return f"a frame of {len(frame)} bytes"
    kind = int.from_bytes(frame[12:14], "big")
    at, tags = 14, ""
    for _ in range(_MOST_TAGS):
        if kind not in _VLANS or len(frame) < at + 4:
            break
        tags += f"vlan {int.from_bytes(frame[at : at + 2], 'big') & 0xFFF} "
        kind = int.from_bytes(frame[at + 2 : at + 4], "big")
        at += 4
    return tags + _payload(kind, frame, frame[at:])


def _payload(kind: int, frame: bytes, data: bytes) -> str:
    text = ""
    if kind == _ARP:
        text = _arp(data)
    elif kind == _IPV4:
        text = _ipv4(data)
    elif kind == _IPV6:
        text = _ipv6(data)
    if text:
        return text
    what = f"type {kind:#06x}" if kind >= 0x600 else f"LLC, {kind} bytes"
    return f"{_mac(frame[6:12])} > {_mac(frame[:6])} {what}, {len(frame)} bytes"


def _mac(data: bytes) -> str:
    return ":".join(f"{byte:02x}" for byte in data)


def _arp(data: bytes) -> str:
    if len(data) < 28:
        return ""
    operation = int.from_bytes(data[6:8], "big")
    sender, target = ipaddress.IPv4Address(data[14:18]), ipaddress.IPv4Address(data[24:28])
    if operation == 1:
        return f"ARP who has {target}? tell {sender}"
    if operation == 2:
        return f"ARP {sender} is at {_mac(data[8:14])}"
    return f"ARP operation {operation}"


def _ipv4(data: bytes) -> str:
    header = (data[0] & 0xF) * 4 if data else 0
    if len(data) < 20 or header < 20:
        return ""
    source, target = ipaddress.IPv4Address(data[12:16]), ipaddress.IPv4Address(data[16:20])
    offset = int.from_bytes(data[6:8], "big") & 0x1FFF
    total = int.from_bytes(data[2:4], "big")
    if offset:
        return f"{source} > {target} fragment at {8 * offset}, {total} bytes"
    return _transport(data[9], str(source), str(target), data[header:], max(0, total - header))


def _ipv6(data: bytes) -> str:
    if len(data) < 40:
        return ""
    source, target = ipaddress.IPv6Address(data[8:24]), ipaddress.IPv6Address(data[24:40])
    length = int.from_bytes(data[4:6], "big")
    return _transport(data[6], f"[{source}]", f"[{target}]", data[40:], length)


def _transport(protocol: int, source: str, target: str, data: bytes, length: int) -> str:
    if protocol == _TCP and len(data) >= 14:
        return _tcp(source, target, data, length)
    if protocol == _UDP and len(data) >= 8:
        ports = struct.unpack_from(">HH", data)
        name = next((_UDP_NAMES[port] for port in ports if port in _UDP_NAMES), "")
        size = max(0, length - 8)
        return f"{source}:{ports[0]} > {target}:{ports[1]} UDP {name + ' ' if name else ''}{size}"
    names = {_ICMP_PROTOCOL: _ICMP, _ICMP6_PROTOCOL: _ICMP6}.get(protocol)
    if names is not None and data:
        echo = ""
        if names.get(data[0], "").startswith("echo") and len(data) >= 8:
            echo = f" {int.from_bytes(data[6:8], 'big')}"
        what = names.get(data[0], f"type {data[0]}")
        return f"{source} > {target} ICMP {what}{echo}"
    return f"{source} > {target} protocol {protocol}, {length} bytes"


def _tcp(source: str, target: str, data: bytes, length: int) -> str:
    ports = struct.unpack_from(">HH", data)
    flags = " ".join(name for bit, name in _FLAGS if data[13] & bit) or "no flags"
    size = max(0, length - (data[12] >> 4) * 4)
    return f"{source}:{ports[0]} > {target}:{ports[1]} TCP {flags}, {size}"
