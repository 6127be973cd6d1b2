"""Linux bridges: membership, and a bridge of one's own with an address."""

from __future__ import annotations

import ipaddress
import os

import msgspec

from wirt.errors import HostError, NotFound, UsageError
from wirt.net.place import HERE, Place, stable_mac
from wirt.typed_json import decode


def require_bridge(place: Place, name: str) -> None:
    """Raises NotFound if ``name`` is no Linux bridge of the place."""
    found = place.ip("link", "show", "dev", name, "type", "bridge", check=False)
    if found.returncode == 0 and found.stdout.strip():
        return
    if place.has(name):
        raise UsageError(f"the interface {name} is not a bridge", hint="ip -d link show " + name)
    raise NotFound(
        f"there is no bridge {name}",
        hint=f"ip link add {name} type bridge && ip link set {name} up; or wirt net create",
    )


def join(place: Place, interface: str, bridge: str) -> None:
    """Make an interface a port of a bridge; it leaves the one it was in."""
    place.ip("link", "set", "dev", interface, "master", bridge)


def leave(place: Place, interface: str) -> None:
    """Take an interface out of its bridge."""
    place.ip("link", "set", "dev", interface, "nomaster")


def make_bridge(place: Place, name: str, address: str) -> None:
    """Make a bridge with an address, which may exist already as it should be."""
    if not place.has(name):
        # An address of its own: it would follow its ports', and they come and go.
        mac = stable_mac("bridge", name)
        place.ip("link", "add", "name", name, "address", mac, "type", "bridge")
    place.ip("address", "replace", address, "dev", name)
    place.ip("link", "set", "dev", name, "up")


def remove_bridge(place: Place, name: str) -> None:
    """Remove a bridge; its ports stay as interfaces. One that is gone is no error."""
    if place.has(name):
        place.ip("link", "delete", "dev", name, "type", "bridge")


class _AddressInfo(msgspec.Struct):
    local: str = ""
    prefixlen: int = 32


class _Interface(msgspec.Struct):
    addr_info: list[_AddressInfo] = []


class _Route(msgspec.Struct):
    dst: str = ""


def check_address(text: str) -> ipaddress.IPv4Interface:
    """Return ``10.77.0.1/24`` as an interface address. Raises UsageError."""
    try:
        found = ipaddress.IPv4Interface(text)
    except ValueError:
        raise UsageError(f"{text[:40]!r} is no IPv4 address", hint="like 10.77.0.1/24") from None
    if not 8 <= found.network.prefixlen <= 29:
        raise UsageError(f"{text}: the prefix must be between 8 and 29", hint="like 10.77.0.1/24")
    if found.ip in {found.network.network_address, found.network.broadcast_address}:
        raise UsageError(f"{text} is not the address of a host", hint="like 10.77.0.1/24")
    return found


def free_address(taken: set[ipaddress.IPv4Network]) -> str:
    """Return the first address of a /24 that overlaps nothing known here. Raises HostError."""
    used = taken | _networks_here()
    for second in range(64, 128):
        for third in (0, 128):
            network = ipaddress.IPv4Network(f"10.{second}.{third}.0/24")
            if not any(network.overlaps(other) for other in used):
                return f"{network[1]}/24"
    raise HostError("no free network in 10.64.0.0/10", hint="give one: --address 192.168.7.1/24")


def _networks_here() -> set[ipaddress.IPv4Network]:
    interfaces = decode(HERE.ip("-json", "-4", "address").stdout or b"[]", list[_Interface])
    routes = decode(HERE.ip("-json", "-4", "route").stdout or b"[]", list[_Route])
    found = {
        ipaddress.IPv4Interface(f"{info.local}/{info.prefixlen}").network
        for interface in interfaces
        for info in interface.addr_info
        if info.local
    }
    for route in routes:
        if route.dst and route.dst != "default":
            found.add(ipaddress.IPv4Network(route.dst, strict=False))
    return found


def require_root(what: str, why: str) -> None:
    """Raises HostError unless we may change the host's own interfaces."""
    if os.geteuid() != 0:
        raise HostError(
            f"{what} needs root: {why}", hint="without root: wirt net create NAME --private"
        )
