"""Bridge networks: ``wirt net create``, and making sure that one is served.

Everything of a network can be made anew from its record, so that after a reboot or a kill
the next machine that starts on it brings it back.
"""

from __future__ import annotations

import ipaddress
import time

import msgspec

from wirt.errors import HostError, WrongState
from wirt.host.process_id import ProcessId
from wirt.net import bridge, dhcp, outside
from wirt.net.place import HERE, Place
from wirt.store import wires
from wirt.store.layout import NetworkPaths
from wirt.store.wires import BridgeRecord
from wirt.vm.context import Context
from wirt.vm.network.processes import end_all, living, recorded, tag
from wirt.vm.network.users import users_of

DOMAIN = "wirt"
_INTERFACE_BYTES = 15


class BridgeWish(msgspec.Struct, frozen=True):
    """What is wanted of a new network; empty: wirt chooses."""

    address: str = ""
    interface: str = ""
    private: bool = False
    dhcp: bool = True
    outside: bool = True
    persist: bool = False


def create_bridge(context: Context, name: str, wish: BridgeWish) -> BridgeRecord:
    """Make a network and start it; nothing of it stays if that fails.

    Raises AlreadyExists, UsageError, HostError, MissingDependency.
    """
    wires.require_free(context.home, "bridge", name)
    if not wish.private:
        bridge.require_root("a bridge among the host's own interfaces", "it changes them for all")
    address = wish.address or bridge.free_address(_taken(context))
    record = BridgeRecord(
        created=time.time(),
        private=wish.private,
        interface=wish.interface or _interface_name(name),
        address=str(bridge.check_address(address)),
        dhcp=wish.dhcp,
        outside=wish.outside,
        persist=wish.persist,
    )
    if not wish.private and HERE.has(record.interface):
        raise HostError(
            f"there is an interface {record.interface} already", hint="choose one: --interface"
        )
    with wires.new(context.home, "bridge", name, record) as paths:
        try:
            return _serve(context, paths, record)
        except BaseException:
            _tear_down(paths, record)
            raise


def _interface_name(name: str) -> str:
    return f"wb-{name}"[:_INTERFACE_BYTES]


def _taken(context: Context) -> set[ipaddress.IPv4Network]:
    home = context.home
    records = [
        wires.read(home.network("bridge", name), BridgeRecord)
        for name in wires.names(home, "bridge")
    ]
    return {ipaddress.IPv4Interface(record.address).network for record in records}


def ensure_bridge(context: Context, name: str) -> BridgeRecord:
    """Make sure that a network is served, and return its record. Raises NotFound, HostError."""
    with wires.locked(context.home, "bridge", name, waiting=context.say) as paths:
        return _serve(context, paths, wires.read(paths, BridgeRecord))


class BridgeFacts(msgspec.Struct, frozen=True):
    """A network as it is now."""

    name: str
    status: str
    """``up`` or ``down``."""
    private: bool
    interface: str
    address: str
    machines: tuple[str, ...]
    leases: tuple[dhcp.Lease, ...] = ()


def bridge_facts(context: Context, name: str) -> BridgeFacts:
    """Return what a network is doing; one that is down is not started."""
    paths = wires.find(context.home, "bridge", name)
    record = wires.read(paths, BridgeRecord)
    return BridgeFacts(
        name=name,
        status="up" if _is_up(record) else "down",
        private=record.private,
        interface=record.interface,
        address=record.address,
        machines=tuple(users_of(context, "bridge", name)),
        leases=tuple(dhcp.read_leases(server_of(paths, record))) if record.dhcp else (),
    )


def _is_up(record: BridgeRecord) -> bool:
    if record.private and living(record.holder) is None:
        return False
    if record.dhcp:
        return living(record.dnsmasq) is not None
    return record.private or HERE.has(record.interface)


def place_of(record: BridgeRecord) -> Place:
    """Return where the network is. Raises WrongState if its private place is gone."""
    if not record.private:
        return HERE
    inside = living(record.holder) or living(record.dnsmasq)
    if inside is None:
        raise WrongState("the network is down", hint="wirt net start NAME")
    return Place(inside.pid)


def _serve(context: Context, paths: NetworkPaths, record: BridgeRecord) -> BridgeRecord:
    """Start what does not live. The caller holds the lock."""
    if not record.private:
        bridge.require_root("a bridge among the host's own interfaces", "it changes them for all")
    known = (record.holder, record.dnsmasq, record.slirp)
    alive = tuple(found for one in known if (found := living(one)) is not None)
    end_all(paths, argument=server_of(paths, record).argument, but=alive)
    with tag(paths) as lock:
        record = _hold(context, paths, record, lock)
        place = place_of(record)
        bridge.make_bridge(place, record.interface, record.address)
        record = _open_outside(paths, record, place, lock)
        if record.dhcp and living(record.dnsmasq) is None:
            process = dhcp.run_server(server_of(paths, record), place, lock=lock)
            record = msgspec.structs.replace(record, dnsmasq=recorded(process))
            wires.write(paths, record)
    return record


def _hold(context: Context, paths: NetworkPaths, record: BridgeRecord, lock: int) -> BridgeRecord:
    served = living(record.holder) or living(record.dnsmasq)
    if served is None:
        wires.make_runtime(paths, 0, mode=0o711)
    if not record.private or served is not None:
        return record
    if record.holder is not None:
        context.say(f"the private network {paths.name} was gone: made anew")
    holder = outside.hold_place(lock=lock)
    record = msgspec.structs.replace(record, holder=recorded(holder), dnsmasq=None, slirp=None)
    wires.write(paths, record)
    return record


def _open_outside(
    paths: NetworkPaths, record: BridgeRecord, place: Place, lock: int
) -> BridgeRecord:
    if not record.outside:
        return record
    network = ipaddress.IPv4Interface(record.address).network
    if record.private and living(record.slirp) is None:
        process = outside.run_slirp(place, lock=lock)
        record = msgspec.structs.replace(record, slirp=recorded(process))
        wires.write(paths, record)
    outside.masquerade(place, record.interface, network)
    return record


def server_of(paths: NetworkPaths, record: BridgeRecord) -> dhcp.Server:
    """Return what dnsmasq serves on the network."""
    upstream = dhcp.SLIRP_DNS if record.private else ""
    return dhcp.Server(
        directory=paths.runtime,
        interface=record.interface,
        address=ipaddress.IPv4Interface(record.address),
        domain=DOMAIN,
        upstream=upstream if record.outside else "none",
        gives_route=record.outside,
    )


def introduce(context: Context, name: str, machine: str, mac: str) -> None:
    """Let the network know a card by the name of its machine."""
    paths = wires.find(context.home, "bridge", name)
    record = wires.read(paths, BridgeRecord)
    if record.dhcp and mac:
        dhcp.introduce(server_of(paths, record), machine, mac, _dnsmasq(record))


def forget(context: Context, name: str, mac: str) -> None:
    """Undo ``introduce``."""
    paths = wires.find(context.home, "bridge", name)
    record = wires.read(paths, BridgeRecord)
    if record.dhcp and mac:
        dhcp.forget(server_of(paths, record), mac, _dnsmasq(record))


def _dnsmasq(record: BridgeRecord) -> ProcessId | None:
    return living(record.dnsmasq)


def remove_bridge(context: Context, name: str, *, force: bool = False) -> None:
    """Remove a network with all it consists of. Raises NotFound, WrongState while it is used."""
    with wires.locked(context.home, "bridge", name, waiting=context.say) as paths:
        used = users_of(context, "bridge", name)
        if used and not force:
            raise WrongState(
                f"{name} is used by {', '.join(used)}", hint="stop them, or: wirt net rm --force"
            )
        record = wires.read(paths, BridgeRecord)
        if not record.private:
            bridge.require_root(f"removing {name}", "its bridge is among the host's interfaces")
        _tear_down(paths, record)
        wires.remove(context.home, paths)


def _tear_down(paths: NetworkPaths, record: BridgeRecord) -> None:
    """A private place vanishes with the processes in it; the host's interfaces do not."""
    end_all(paths, argument=server_of(paths, record).argument)
    if not record.private:
        if record.outside:
            outside.unmasquerade(HERE, record.interface)
        bridge.remove_bridge(HERE, record.interface)
