"""The way out of a bridge network: NAT by nft, and for a private one slirp4netns."""

from __future__ import annotations

import ipaddress
import os

from wirt.errors import HostError
from wirt.host.process import find_program
from wirt.host.process_id import ProcessId
from wirt.net.helper import start
from wirt.net.place import Place

SLIRP_TAP = "outside"
_FORWARDING = "/proc/sys/net/ipv4/ip_forward"


def masquerade(place: Place, bridge: str, network: ipaddress.IPv4Network) -> None:
    """Let the network reach what the place reaches, under the place's own address."""
    place.run("sh", "-c", f"echo 1 > {_FORWARDING}")
    table = f"ip {_table(bridge)}"
    script = (
        f"add table {table}\n"
        f"delete table {table}\n"
        f"add table {table}\n"
        f"add chain {table} nat {{ type nat hook postrouting priority srcnat; }}\n"
        f"add rule {table} nat ip saddr {network} ip daddr != {network} masquerade\n"
    )
    try:
        place.run("nft", "-f", "-", text=script)
    except HostError as error:
        raise HostError(f"nft cannot translate addresses: {error.message}") from error


def unmasquerade(place: Place, bridge: str) -> None:
    """Undo ``masquerade``; forwarding stays on, for others may rely on it by now."""
    place.run("nft", "delete", "table", "ip", _table(bridge), check=False)


def _table(bridge: str) -> str:
    return "wirt-" + bridge.replace(".", "_")


def run_slirp(place: Place, *, lock: int) -> ProcessId:
    """Give a private place a way out through this process's own network.

    Raises HostError, MissingDependency, Timeout. The host's loopback is not reachable by it.
    """
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    try:
        return start(
            [
                find_program("slirp4netns"), "--configure", "--mtu=65520",
                "--disable-host-loopback", f"--ready-fd={write_fd}", str(place.pid), SLIRP_TAP,
            ],
            what="slirp4netns",
            ready=lambda _: _said_ready(read_fd),
            inherit=[lock, write_fd],
        )  # fmt: skip
    finally:
        os.close(read_fd)
        os.close(write_fd)


def _said_ready(fd: int) -> bool:
    try:
        return bool(os.read(fd, 1))
    except BlockingIOError:
        return False


def hold_place(*, lock: int) -> ProcessId:
    """Make a private place: a process that does nothing but keep its namespaces.

    Raises HostError where user namespaces are forbidden, MissingDependency, Timeout.
    """
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    # The descriptor by its name: a shell's own redirection knows single digits only.
    hold = f"ip link set lo up && echo > /proc/self/fd/{write_fd} && exec sleep infinity"
    try:
        return start(
            [find_program("unshare"), "--user", "--map-root-user", "--net", "sh", "-c", hold],
            what="unshare",
            ready=lambda _: _said_ready(read_fd),
            inherit=[lock, write_fd],
        )
    except HostError as error:
        raise HostError(
            f"no private network here: {error.message}",
            hint="wirt doctor says why user namespaces are forbidden",
        ) from error
    finally:
        os.close(read_fd)
        os.close(write_fd)
