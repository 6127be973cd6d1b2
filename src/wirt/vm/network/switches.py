"""VDE switches: ``wirt switch create``, and making sure that one runs."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from wirt.errors import HostError, UsageError, WrongState
from wirt.host.confine import switch_uid
from wirt.host.failpoint import failpoint
from wirt.net import bridge, switch
from wirt.net.place import HERE, Place, require_taps, stable_mac
from wirt.net.switch import PortVlan, Sockets
from wirt.spec.setting import NAME_PATTERN
from wirt.store import wires
from wirt.store.layout import NetworkPaths
from wirt.store.locks import run_lock_is_held
from wirt.store.wires import SwitchRecord
from wirt.vm.context import Context
from wirt.vm.network import bridges
from wirt.vm.network.processes import end_all, living, recorded, tag
from wirt.vm.network.users import users_of

_INTERFACE_BYTES = 15


class SwitchWish(msgspec.Struct, frozen=True):
    """What is wanted of a new switch.

    ``uplink`` is ``none``, ``tap``, ``tap=NAME``, ``bridge=BRIDGE`` or ``network=NAME``.
    """

    ports: int = 32
    vlans: tuple[PortVlan, ...] = ()
    uplink: str = "none"
    persist: bool = False


class SwitchFacts(msgspec.Struct, frozen=True):
    """A switch as it is now."""

    name: str
    status: str
    """``up`` or ``down``."""
    sockets: str
    uplink: str
    machines: tuple[str, ...]
    ports: tuple[switch.Port, ...] = ()
    addresses: tuple[switch.Address, ...] = ()


def sockets_of(paths: NetworkPaths) -> Sockets:
    """Return where a switch listens."""
    return Sockets(paths.file("ctl"), paths.file("console.sock"))


def create_switch(context: Context, name: str, wish: SwitchWish) -> SwitchRecord:
    """Make a switch and start it; nothing of it stays if that fails.

    Raises AlreadyExists, UsageError, NotFound, HostError, MissingDependency.
    """
    kind, target = _parse_uplink(wish.uplink)
    if not 1 <= wish.ports <= switch.MAX_PORTS:
        raise UsageError(f"a switch has 1 to {switch.MAX_PORTS} ports", hint="--ports 32")
    beyond = [member.port for member in wish.vlans if member.port > wish.ports]
    if beyond:
        raise UsageError(f"there is no port {beyond[0]}", hint=f"--ports {beyond[0]}")
    if kind in {"tap", "bridge"}:
        bridge.require_root(f"an uplink to a {kind}", "it is among the host's interfaces")
    if kind == "bridge":
        bridge.require_bridge(HERE, target)
    record = SwitchRecord(
        created=time.time(),
        ports=wish.ports,
        vlans=tuple((member.port, member.vlan, member.tagged) for member in wish.vlans),
        uplink=kind,
        target=target,
        interface=_interface(name, kind, target),
        persist=wish.persist,
        # A TAP needs root; all others run as a user that can do nothing else.
        uid=switch_uid() if os.geteuid() == 0 and not kind else 0,
    )
    wires.require_free(context.home, "switch", name)
    if kind in {"tap", "bridge"} and HERE.has(record.interface):
        raise HostError(f"there is an interface {record.interface} already", hint="tap=NAME")
    with wires.new(context.home, "switch", name, record) as paths:
        try:
            return _run(context, paths, record)
        except BaseException:
            end_all(paths)
            raise


def _parse_uplink(text: str) -> tuple[str, str]:
    kind, _, target = text.partition("=")
    if kind in {"none", ""}:
        return "", ""
    if kind not in {"tap", "bridge", "network"} or (kind != "tap" and not target):
        raise UsageError(
            f"{text[:40]!r} is no uplink", hint="none, tap, tap=NAME, bridge=BRIDGE, network=NAME"
        )
    if target and not re.fullmatch(NAME_PATTERN, target):
        raise UsageError(f"{target[:40]!r} cannot be the name of an interface")
    return kind, target


def _interface(name: str, kind: str, target: str) -> str:
    if not kind:
        return ""
    return target if kind == "tap" and target else f"ws-{name}"[:_INTERFACE_BYTES]


@contextmanager
def running(context: Context, name: str) -> Iterator[tuple[SwitchRecord, NetworkPaths]]:
    """Hold a switch that runs; it is started if it does not. Raises NotFound, HostError.

    What was plugged into one that was killed is plugged in again by ``mend``.
    """
    with wires.locked(context.home, "switch", name, waiting=context.say) as paths:
        record = wires.read(paths, SwitchRecord)
        if not is_up(paths):
            context.say(f"starting the switch {name}")
            record = _run(context, paths, record)
        yield record, paths


def ensure_switch(context: Context, name: str) -> SwitchRecord:
    """Make sure that a switch runs. Raises NotFound, HostError."""
    with running(context, name) as (record, _):
        return record


def is_up(paths: NetworkPaths) -> bool:
    """True if the switch runs, has its VLANs and its uplink, and answers."""
    if living(wires.read(paths, SwitchRecord).process) is None:
        return False
    return run_lock_is_held(paths.run_lock) and switch.answers(sockets_of(paths))


def _run(context: Context, paths: NetworkPaths, record: SwitchRecord) -> SwitchRecord:
    if record.interface:
        require_taps()
    end_all(paths)
    place = _place(context, record)
    wires.make_runtime(paths, record.uid)
    with tag(paths) as lock:
        process = switch.run_switch(
            sockets_of(paths),
            ports=record.ports,
            tap=record.interface,
            lock=lock,
            uid=record.uid,
            place=place,
        )
    failpoint("switch-begun")
    switch.configure(sockets_of(paths), [PortVlan(*member) for member in record.vlans])
    if record.interface:
        _join_uplink(context, record, place)
    record = msgspec.structs.replace(record, process=recorded(process))
    wires.write(paths, record)  # last: a switch that no record knows is begun anew
    return record


def _place(context: Context, record: SwitchRecord) -> Place:
    if record.uplink != "network":
        return HERE
    return bridges.place_of(bridges.ensure_bridge(context, record.target))


def _join_uplink(context: Context, record: SwitchRecord, place: Place) -> None:
    mac = stable_mac("switch", record.interface)
    place.ip("link", "set", "dev", record.interface, "address", mac, "up")
    if record.uplink == "bridge":
        bridge.join(place, record.interface, record.target)
    elif record.uplink == "network":
        network = wires.read(wires.find(context.home, "bridge", record.target), wires.BridgeRecord)
        bridge.join(place, record.interface, network.interface)


def set_vlans(context: Context, name: str, vlans: tuple[PortVlan, ...]) -> SwitchRecord:
    """Change VLANs of ports, at once and for later. Raises NotFound, HostError, UsageError."""
    with running(context, name) as (record, paths):
        changed = {(port, vlan if tagged else -1): (port, vlan, tagged)
                   for port, vlan, tagged in record.vlans}  # fmt: skip
        for member in vlans:
            if member.port > record.ports:
                raise UsageError(f"{name} has {record.ports} ports: there is no {member.port}")
            key = (member.port, member.vlan if member.tagged else -1)
            changed[key] = (member.port, member.vlan, member.tagged)
        switch.configure(sockets_of(paths), vlans)
        new = msgspec.structs.replace(record, vlans=tuple(sorted(changed.values())))
        wires.write(paths, new)
        return new


def remove_switch(context: Context, name: str, *, force: bool = False) -> None:
    """Remove a switch. Raises NotFound, WrongState while machines are plugged into it."""
    with wires.locked(context.home, "switch", name, waiting=context.say) as paths:
        used = users_of(context, "switch", name)
        if used and not force:
            raise WrongState(
                f"{name} is used by {', '.join(used)}",
                hint="stop them, plug them elsewhere (wirt nic plug), or: wirt switch rm --force",
            )
        end_all(paths)
        wires.remove(context.home, paths)


def switch_facts(context: Context, name: str) -> SwitchFacts:
    """Return what a switch is doing; one that is down is not started."""
    paths = wires.find(context.home, "switch", name)
    record = wires.read(paths, SwitchRecord)
    up = is_up(paths)
    sockets = sockets_of(paths)
    return SwitchFacts(
        name=name,
        status="up" if up else "down",
        sockets=sockets.control,
        uplink=" ".join(filter(None, (record.uplink, record.target, record.interface))),
        machines=tuple(users_of(context, "switch", name)),
        ports=tuple(switch.ports(sockets)) if up else (),
        addresses=tuple(switch.addresses(sockets)) if up else (),
    )
