"""A VDE switch: the program ``vde_switch``, and what its console says of ports and addresses."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterable

import msgspec

from wirt.errors import CommandRefused, ProtocolError, UsageError, WirtError
from wirt.host.process import find_program
from wirt.host.process_id import ProcessId
from wirt.net.console import Console
from wirt.net.helper import endless_input, start
from wirt.net.place import HERE, Place, as_user

MAX_PORTS = 1024
_PORT = re.compile(r"^Port (\d+) untagged_vlan=(\d+) (ACTIVE|INACTIVE) - (NOT )?")
_COUNTER = re.compile(r"^\s*(IN|OUT):\s+pkts\s+(\d+)\s+bytes\s+(\d+)")
_ENDPOINT = re.compile(r"^\s*-- endpoint ID (\d+) module (\S+)\s+prog\s+: (.*)$")
_VLAN = re.compile(r"^VLAN (\d+)")
_MEMBER = re.compile(r"^\s*-- Port (\d+) tagged=1 ")
_HASH = re.compile(r"Hash: \d+ Addr: ([0-9A-Fa-f:]{17}) VLAN (\d+) to port: (\d+)\s+age (\d+) secs")


class Sockets(msgspec.Struct, frozen=True):
    """``control`` is the directory that plugs are connected to, ``console`` a socket."""

    control: str
    console: str


class PortVlan(msgspec.Struct, frozen=True):
    """A port's membership of an 802.1Q VLAN."""

    port: int
    vlan: int
    tagged: bool = False


class Port(msgspec.Struct, frozen=True):
    """A port as the switch sees it: ``received`` came from the plug, ``sent`` went to it."""

    number: int
    vlan: int
    active: bool
    reserved: bool = False
    """Made for one plug: a plug that asks for any port does not get it."""
    received_packets: int = 0
    received_bytes: int = 0
    sent_packets: int = 0
    sent_bytes: int = 0
    plugs: tuple[str, ...] = ()
    tagged: tuple[int, ...] = ()


class Address(msgspec.Struct, frozen=True):
    """An entry of the MAC table."""

    mac: str
    vlan: int
    port: int
    age: int
    """Seconds since its last frame."""


def parse_vlans(text: str) -> tuple[PortVlan, ...]:
    """Return the memberships of ``1=7,2=7,8=7t``: port, VLAN, and t for tagged.

    Raises UsageError.
    """
    found = []
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"(\d{1,4})=(\d{1,4})(t?)", part)
        if not match or not 0 < int(match[1]) <= MAX_PORTS or int(match[2]) > 4094:
            raise UsageError(
                f"{part[:40]!r} is not PORT=VLAN", hint="for example 1=7,2=7,8=7t (t: tagged)"
            )
        found.append(PortVlan(int(match[1]), int(match[2]), tagged=bool(match[3])))
    return tuple(found)


def run_switch(
    sockets: Sockets, *, ports: int, tap: str, lock: int, uid: int = 0, place: Place = HERE
) -> ProcessId:
    """Start a switch; it takes over what a killed one left. Raises HostError, Timeout.

    As ``uid`` (when root) unless it needs a TAP.
    """
    line = [
        find_program("vde_switch"), "-s", sockets.control, "-M", sockets.console,
        "-n", str(ports + 1), "-f", "/dev/null",
        "-m", "0660", "--dirmode", "0770", "--mgmtmode", "0600",
    ]  # fmt: skip
    if tap:
        line += ["-t", tap]
    line = [*as_user(uid), *_known_by_name(uid), *line] if uid else place.command(line)
    with endless_input() as (stdin, keep):
        return start(
            line,
            what="vde_switch",
            ready=lambda _: answers(sockets),
            inherit=(lock, keep),
            stdin=stdin,
        )


def _known_by_name(uid: int) -> list[str]:
    """vde_switch 2.3.2 crashes when it lists a port whose user has no name.

    In a user namespace of its own it and its peer are root, which has one everywhere.
    """
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return [find_program("unshare"), "--user", "--map-root-user"]
    return []


def answers(sockets: Sockets) -> bool:
    """True if a switch listens at ``sockets``."""
    if not os.path.exists(sockets.console):
        return False
    try:
        Console(sockets.console).close()
    except WirtError:
        return False
    return True


def configure(sockets: Sockets, vlans: Iterable[PortVlan]) -> None:
    """Make ports and their VLANs, and let an address move to another port at once.

    By default a switch holds an address on its port for 3 s: a machine that was migrated or
    re-plugged would be unreachable for that time.
    """
    with Console(sockets.console) as console:
        console.ask("hash/setminper 0")
        for member in vlans:
            join(console, member)


def join(console: Console, member: PortVlan) -> None:
    """Make a port and put it into a VLAN, both of which may exist."""
    _unless_there(console, f"port/create {member.port}")
    if member.vlan:
        _unless_there(console, f"vlan/create {member.vlan}")
    if member.tagged:
        console.ask(f"vlan/addport {member.vlan} {member.port}")
    else:
        console.ask(f"port/setvlan {member.port} {member.vlan}")


def _unless_there(console: Console, command: str) -> None:
    try:
        console.ask(command)
    except CommandRefused as error:
        if error.error_class != "1017":  # EEXIST
            raise


def free_port(sockets: Sockets, vlan: int) -> int:
    """Return a port for one plug in a VLAN: one that its former plug left, or a new one.

    Raises CommandRefused when all are taken.
    """
    left = [port.number for port in ports(sockets) if port.reserved and not port.active]
    with Console(sockets.console) as console:
        if left:
            number = left[0]
        else:
            lines = console.ask("port/createauto")
            match = re.match(r"^Port (\d+)", lines[0]) if lines else None
            if match is None:
                raise ProtocolError("the switch made a port and did not say which")
            number = int(match[1])
        join(console, PortVlan(number, vlan))
        return number


def pull(sockets: Sockets, text: str) -> None:
    """Close the plugs that call themselves ``text``."""
    with Console(sockets.console) as console:
        port = ""
        for line in console.ask("port/allprint"):
            if match := _PORT.match(line):
                port = match[1]
            elif (match := _ENDPOINT.match(line)) and match[3].strip() == text:
                console.ask(f"port/epclose {port} {match[1]}")


def ports(sockets: Sockets) -> list[Port]:
    """Return all ports with counters, plugs and VLANs."""
    with Console(sockets.console) as console:
        return parse_ports(console.ask("port/allprint"), console.ask("vlan/allprint"))


def parse_ports(lines: list[str], vlan_lines: list[str]) -> list[Port]:
    """Read what ``port/allprint`` and ``vlan/allprint`` say."""
    tagged = _tagged(vlan_lines)
    found: list[Port] = []
    for line in lines:
        if match := _PORT.match(line):
            number = int(match[1])
            found.append(
                Port(
                    number, int(match[2]), match[3] == "ACTIVE", bool(match[4]),
                    tagged=tuple(tagged.get(number, ())),
                )
            )  # fmt: skip
        elif found and (match := _COUNTER.match(line)):
            way = "received" if match[1] == "IN" else "sent"
            counted = {f"{way}_packets": int(match[2]), f"{way}_bytes": int(match[3])}
            found[-1] = msgspec.structs.replace(found[-1], **counted)
        elif found and (match := _ENDPOINT.match(line)):
            plug = match[3] if match[2] == "unix" else f"{match[2]} {match[3]}"
            found[-1] = msgspec.structs.replace(found[-1], plugs=(*found[-1].plugs, plug.strip()))
    return found


def _tagged(lines: list[str]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    vlan = 0
    for line in lines:
        if match := _VLAN.match(line):
            vlan = int(match[1])
        elif match := _MEMBER.match(line):
            found.setdefault(int(match[1]), []).append(vlan)
    return found


def addresses(sockets: Sockets) -> list[Address]:
    """Return the MAC table."""
    with Console(sockets.console) as console:
        return parse_addresses(console.ask("hash/print"))


def parse_addresses(lines: list[str]) -> list[Address]:
    """Read what ``hash/print`` says."""
    matches = [_HASH.search(line) for line in lines]
    return [Address(m[1].lower(), int(m[2]), int(m[3]), int(m[4])) for m in matches if m]


def flood(sockets: Sockets, *, on: bool) -> None:
    """Send each frame to every port, as a hub does: a plug then sees all traffic."""
    with Console(sockets.console) as console:
        console.ask(f"port/sethub {int(on)}")


def floods(sockets: Sockets) -> bool:
    """True if the switch is a hub now."""
    with Console(sockets.console) as console:
        return "HUB=true" in console.ask("port/showinfo")
