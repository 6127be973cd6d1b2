"""DHCP and names for the guests of a bridge, by dnsmasq.

Each card has a file in a directory that dnsmasq watches: a line ``MAC,NAME``, by which its
machine is known to its neighbours, whatever host name its guest believes to have.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal

import msgspec

from wirt.host.process import find_program
from wirt.host.process_id import ProcessId
from wirt.net.helper import start
from wirt.net.place import Place

LEASE_TIME = "12h"
SLIRP_DNS = "10.0.2.3"
_MAX_LEASES = 1 << 20


class Server(msgspec.Struct, frozen=True):
    """What dnsmasq serves, and the directory of its files: ``hosts/``, ``leases``."""

    directory: str
    interface: str
    address: ipaddress.IPv4Interface
    domain: str
    upstream: str = ""
    """A name server; empty: the host's own; ``none``: nothing but the machines' names."""
    gives_route: bool = True

    @property
    def hosts(self) -> str:
        return os.path.join(self.directory, "hosts")

    @property
    def leases(self) -> str:
        return os.path.join(self.directory, "leases")

    @property
    def argument(self) -> str:
        """The word of the command line by which this server's process is found."""
        return f"--dhcp-leasefile={self.leases}"


class Lease(msgspec.Struct, frozen=True):
    """An address that a guest was given."""

    mac: str
    address: str
    name: str


def run_server(server: Server, place: Place, *, lock: int) -> ProcessId:
    """Start dnsmasq. Raises HostError with its own words, MissingDependency, Timeout."""
    os.makedirs(server.hosts, mode=0o755, exist_ok=True)
    return start(
        place.command(_line(server, place)),
        what="dnsmasq",
        ready=lambda said: "started, version" in said,
        inherit=[lock],
    )


def _line(server: Server, place: Place) -> list[str]:
    network = server.address.network
    first, last = network[min(10, network.num_addresses // 2)], network[-2]
    line = [
        # In a private place there is no other user to become, which --no-daemon leaves out.
        find_program("dnsmasq"), "--no-daemon" if place.is_private else "--keep-in-foreground",
        "--conf-file=/dev/null", "--log-facility=-",
        "--bind-interfaces", f"--interface={server.interface}", "--except-interface=lo",
        f"--listen-address={server.address.ip}", "--no-hosts", "--dhcp-authoritative",
        f"--dhcp-range={first},{last},{network.netmask},{LEASE_TIME}",
        server.argument, f"--dhcp-hostsdir={server.hosts}",
        "--pid-file=", f"--domain={server.domain}", "--expand-hosts",
        f"--local=/{server.domain}/", f"--host-record=host.{server.domain},{server.address.ip}",
        "--quiet-dhcp", "--quiet-dhcp6", "--quiet-ra",
    ]  # fmt: skip
    if not server.gives_route:
        line.append("--dhcp-option=option:router")
    if server.upstream:
        line.append("--no-resolv")
    if server.upstream and server.upstream != "none":
        line.append(f"--server={server.upstream}")
    return line


def introduce(server: Server, machine: str, mac: str, process: ProcessId | None) -> None:
    """Let the network know the card ``mac`` by the name of its machine."""
    temporary = os.path.join(server.directory, f"new-{_file(mac)}")
    with open(temporary, "w", encoding="ascii") as file:
        file.write(f"{mac.lower()},{machine}\n")
    os.chmod(temporary, 0o644)
    os.rename(temporary, os.path.join(server.hosts, _file(mac)))
    _reload(process)


def forget(server: Server, mac: str, process: ProcessId | None) -> None:
    """Undo ``introduce``."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(server.hosts, _file(mac)))
        _reload(process)


def _file(mac: str) -> str:
    return mac.lower().replace(":", "-")


def _reload(process: ProcessId | None) -> None:
    """The directory is watched for new files only; SIGHUP reads it anew."""
    if process is not None:
        process.signal(signal.SIGHUP)


def read_leases(server: Server) -> list[Lease]:
    """Return the addresses given so far."""
    try:
        with open(server.leases, encoding="ascii", errors="replace") as file:
            lines = file.read(_MAX_LEASES).splitlines()
    except FileNotFoundError:
        return []
    rows = [line.split() for line in lines]
    return [Lease(row[1], row[2], row[3]) for row in rows if len(row) >= 4 and ":" in row[1]]
