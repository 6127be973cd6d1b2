"""Limits of a TAP in bytes a second: a token bucket towards the guest, nft from it.

What leaves for the guest waits in a bucket (tc tbf). What comes from the guest is dropped
beyond the rate as it arrives, since only senders can wait; TCP adapts to it. The bucket
vanishes with the interface; nft's chain stays, and would catch another one of that name.
"""

from __future__ import annotations

import shutil

from wirt.errors import HostError, MissingDependency
from wirt.net.place import Place

_TABLE = "wirt"
_BURST_SECONDS = 0.05
_SMALLEST_BURST = 32 << 10


def limit(place: Place, interface: str, *, to_guest: int, from_guest: int) -> None:
    """Set both limits; 0 removes one. Raises HostError, MissingDependency."""
    _limit_to_guest(place, interface, to_guest)
    _limit_from_guest(place, interface, from_guest)


def forget(place: Place, interface: str) -> None:
    """Remove the chain that an interface of this name may have left."""
    if shutil.which("nft", path="/usr/sbin:/sbin:/usr/local/sbin:/usr/bin"):
        place.run("nft", "delete", "chain", "netdev", _TABLE, interface, check=False)


def _burst(rate: int) -> int:
    return max(_SMALLEST_BURST, int(rate * _BURST_SECONDS))


def _limit_to_guest(place: Place, interface: str, rate: int) -> None:
    if not rate:
        place.run("tc", "qdisc", "del", "dev", interface, "root", check=False)
        return
    try:
        place.run(
            "tc", "qdisc", "replace", "dev", interface, "root", "tbf",
            "rate", f"{8 * rate}bit", "burst", str(_burst(rate)), "latency", "50ms",
        )  # fmt: skip
    except HostError as error:
        raise MissingDependency(
            f"the kernel cannot limit {interface}: {error.message}", hint="modprobe sch_tbf"
        ) from error


def _limit_from_guest(place: Place, interface: str, rate: int) -> None:
    chain = f"netdev {_TABLE} {interface}"
    # Deleting needs the chain to be there: make it first, all in one transaction.
    script = (
        f"add table netdev {_TABLE}\n"
        f'add chain {chain} {{ type filter hook ingress device "{interface}" priority 0; }}\n'
        f"delete chain {chain}\n"
    )
    if rate:
        script += (
            f'add chain {chain} {{ type filter hook ingress device "{interface}" priority 0; }}\n'
            f"add rule {chain} limit rate over {rate} bytes/second"
            f" burst {_burst(rate)} bytes drop\n"
        )
    try:
        place.run("nft", "-f", "-", text=script)
    except HostError as error:
        raise HostError(f"nft cannot limit {interface}: {error.message}") from error
