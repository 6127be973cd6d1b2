"""Network cards of a machine, while it is down or runs: add, remove, plug, link, limit.

Each changes the description and, if the machine runs, the machine too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import msgspec

from wirt.errors import CommandRefused, Timeout, WirtError, WrongState
from wirt.net import bridge
from wirt.net import switch as vde
from wirt.net.place import HERE
from wirt.protocols.deadline import Deadline
from wirt.protocols.qmp.client import QmpClient, Subscription
from wirt.qapi.value import QapiObject
from wirt.qemu.free_place import free_nic_place
from wirt.qemu.nic import cable_values, hub_of, idle_port, nic_values
from wirt.qemu.runtime import Runtime
from wirt.spec.nic import Backend, Network, Nic, Rate, Switch, Tap
from wirt.store import wires as store
from wirt.store.layout import VmPaths
from wirt.store.machines import find, locked, read_spec
from wirt.store.record import Record, Wire, read_record, write_record
from wirt.vm import state
from wirt.vm.context import Context
from wirt.vm.description import load_spec
from wirt.vm.edit import replace_locked
from wirt.vm.monitor import connect
from wirt.vm.network import bridges, switches
from wirt.vm.network.cards import (
    add_card,
    change_card,
    find_card,
    free_card_name,
    remove_card,
    wire_id,
)
from wirt.vm.network.host_end import make_uplink, plug_text, release, set_rate
from wirt.vm.network.uplink import Uplink
from wirt.vm.network.uplinks import open_forwards, plain_wires
from wirt.vm.preflight import nic_with_ports

_UNPLUG_SECONDS = 20.0


def add_nic(context: Context, name: str, nic: Nic) -> str:
    """Give a machine another card; return its name.

    Raises NotFound, SpecError, WrongState when no slot is free, and what the backend raises.
    """
    from wirt.vm.fresh import random_mac

    with locked(context.home, name, waiting=context.say) as paths:
        machine = load_spec(paths)
        plugged = _wires(paths)
        nic = msgspec.structs.replace(
            nic, id=nic.id or free_card_name(machine, plugged), mac=nic.mac or random_mac()
        )
        add_card(paths, nic)
        if state.look(paths, ask=False).is_up:
            try:
                _add_live(context, paths, nic)
            except BaseException:
                remove_card(paths, nic.id)
                raise
        return nic.id


class HeldCard(msgspec.Struct, frozen=True):
    """A card of a machine whose lock is held; ``wire`` is None while the machine is down."""

    paths: VmPaths
    place: int
    """In the description."""
    wires: tuple[Wire, ...]
    wire: Wire | None

    def remember(self, new: Wire | None) -> None:
        """Write down what the card is plugged into now; None: it was taken out."""
        others = [new if wire == self.wire else wire for wire in self.wires]
        _remember(self.paths, [wire for wire in others if wire is not None])


@contextlib.contextmanager
def held_card(context: Context, name: str, card: str) -> Iterator[HeldCard]:
    """Hold the lock of a machine, for one of its cards. Raises NotFound, Busy."""
    with locked(context.home, name, waiting=context.say) as paths:
        place = find_card(paths, load_spec(paths), card)
        wires = _wires(paths)
        wire = next((wire for wire in wires if wire_id(wire) == card), None)
        yield HeldCard(paths, place, wires, wire)


def _wires(paths: VmPaths) -> tuple[Wire, ...]:
    run = read_record(paths.record).run
    return run.wires if run is not None and state.look(paths, ask=False).is_up else ()


def _remember(paths: VmPaths, wires: Sequence[Wire]) -> None:
    record = read_record(paths.record)
    if record.run is not None:
        forwards = open_forwards(wire.nic for wire in wires)
        run = msgspec.structs.replace(record.run, wires=tuple(wires), forwards=forwards)
        write_record(paths.record, msgspec.structs.replace(record, run=run))


def _runtime(paths: VmPaths, record: Record, uplinks: dict[str, QapiObject]) -> Runtime:
    accelerator = record.run.accelerator if record.run else ""
    return Runtime(
        accelerator=accelerator, directory=paths.root, socket=paths.socket, uplinks=uplinks
    )


def _add_live(context: Context, paths: VmPaths, nic: Nic) -> None:
    record = state.require_running(paths).record
    nic = nic_with_ports(nic)
    plugged = _wires(paths)
    index = max((wire.index for wire in plugged), default=-1) + 1
    argv = record.run.argv if record.run else ()
    place, place_name = free_nic_place(nic, argv, {wire.place for wire in plugged})
    with _made(context, paths.name, nic, index, through_hub=False) as uplink:
        wire = Wire(index, nic, uplink.interface if uplink else "", place_name, hub_of(nic, index))
        with connect(paths, record) as qmp:
            uplinks = _send(qmp, uplink, f"{nic.id}-net")
            values = nic_values(nic, index, _runtime(paths, record, uplinks), place)
            _netdevs_add(qmp, values.netdevs)
            _ensure_idle_port(qmp, wire)
            try:
                qmp.execute("device_add", values.device)
                if not nic.link:
                    qmp.execute("set_link", {"name": nic.id, "up": False})
            except BaseException:
                _netdevs_del(qmp, values.netdevs)
                raise
    _remember(paths, (*plugged, wire))


@contextlib.contextmanager
def _made(
    context: Context, machine: str, nic: Nic, index: int, *, through_hub: bool
) -> Iterator[Uplink | None]:
    """Make the host's end of a card; QEMU has its own descriptors when the block ends well."""
    uplink = make_uplink(context, machine, nic, index, through_hub=through_hub)
    try:
        yield uplink
    except BaseException:
        release(context, machine, Wire(index, nic, uplink.interface if uplink else ""))
        raise
    finally:
        if uplink is not None:
            uplink.close()


def _ensure_idle_port(qmp: QmpClient, wire: Wire) -> None:
    """A fork has none yet; elsewhere the start has made it."""
    if wire.hub is not None:
        with contextlib.suppress(CommandRefused):  # the name is taken: it is there
            qmp.execute("netdev_add", idle_port(wire_id(wire), wire.hub))


def _send(qmp: QmpClient, uplink: Uplink | None, netdev: str) -> dict[str, QapiObject]:
    """Hand the descriptors to QEMU and return the backend that names them."""
    if uplink is None:
        return {}
    names = [f"{netdev}-{number}" for number in range(len(uplink.fds))]
    for name, fd in zip(names, uplink.fds, strict=True):
        qmp.send_fd(name, fd)
    return {netdev: uplink.value(names)}


def _netdevs_add(qmp: QmpClient, values: Sequence[QapiObject]) -> None:
    done: list[QapiObject] = []
    try:
        for value in values:
            qmp.execute("netdev_add", value)
            done.append(value)
    except BaseException:
        _netdevs_del(qmp, done)
        raise


def _netdevs_del(qmp: QmpClient, values: Sequence[QapiObject]) -> None:
    for value in reversed(values):
        with contextlib.suppress(CommandRefused):
            qmp.execute("netdev_del", {"id": value["id"]})


def remove_nic(context: Context, name: str, card: str) -> None:
    """Take a card out. Raises NotFound, WrongState if it is not pluggable or the guest keeps it."""
    with held_card(context, name, card) as held:
        if held.wire is not None:
            _remove_live(context, held.paths, card, held.wire)
            held.remember(None)
        remove_card(held.paths, card)


def _remove_live(context: Context, paths: VmPaths, card: str, wire: Wire) -> None:
    record = read_record(paths.record)
    with connect(paths, record) as qmp:
        with qmp.events("DEVICE_DELETED") as gone:
            try:
                qmp.execute("device_del", {"id": card})
            except CommandRefused as error:
                raise WrongState(
                    f"{card} cannot be taken out while {paths.name} runs: {error.description}",
                    hint=f"wirt stop {paths.name}, then again",
                ) from error
            _await_gone(gone, paths.name, card)
        _unplug(context, paths, qmp, wire)
        _netdevs_del(qmp, [{"id": f"{card}-hub"}, {"id": f"{card}-idle"}])


class _Deleted(msgspec.Struct):
    device: str = ""


def _await_gone(events: Subscription, machine: str, card: str) -> None:
    deadline = Deadline.after(_UNPLUG_SECONDS)
    device = ""
    while device != card:
        try:
            device = events.get(max(0.01, deadline.left())).data_as(_Deleted).device
        except Timeout:
            raise WrongState(
                f"the guest of {machine} does not let go of {card}",
                hint=f"its system must run and drive the card; or: wirt stop {machine}",
            ) from None


def plug(context: Context, name: str, card: str, backend: Backend) -> None:
    """Plug a card into something else, at once and for later.

    Raises NotFound, WrongState for a card that is joined to its tap, and what the new
    backend raises; the old one then stays.
    """
    with held_card(context, name, card) as held:
        before = read_spec(held.paths)
        change_card(held.paths, card, "backend", msgspec.to_builtins(backend))
        try:
            if held.wire is not None:
                held.remember(_plug_live(context, held.paths, held.wire, backend))
        except BaseException:
            replace_locked(held.paths, before)
            raise


def replug(context: Context, name: str, card: str) -> None:
    """Pull a card's cable and plug it in again where it was: its peer was restarted."""
    with held_card(context, name, card) as held:
        if held.wire is not None and held.wire.hub is not None:
            held.remember(_plug_live(context, held.paths, held.wire, held.wire.nic.backend))


def _plug_live(context: Context, paths: VmPaths, wire: Wire, backend: Backend) -> Wire:
    if wire.hub is None:
        return _move_tap(context, paths, wire, backend)
    nic = msgspec.structs.replace(wire.nic, backend=backend)
    same = type(backend) is type(wire.nic.backend) and backend == wire.nic.backend
    if not same:  # the card itself has its ports now
        nic = nic_with_ports(nic)
    card = wire_id(wire)
    record = state.require_running(paths).record
    with connect(paths, record) as qmp:
        _ensure_idle_port(qmp, wire)
        if same or not isinstance(backend, Switch | Tap | Network):
            _unplug(context, paths, qmp, wire)  # ports and paths must be free again
        with _made(context, paths.name, nic, wire.index, through_hub=True) as uplink:
            if not same:
                _unplug(context, paths, qmp, wire)
            uplinks = _send(qmp, uplink, f"{card}-net")
            runtime = _runtime(paths, record, uplinks)
            _netdevs_add(qmp, cable_values(nic, wire.index, runtime, wire.hub))
            interface = uplink.interface if uplink else ""
    return msgspec.structs.replace(wire, nic=nic, interface=interface)


def _unplug(context: Context, paths: VmPaths, qmp: QmpClient, wire: Wire) -> None:
    """Remove a card's cable; one that is gone is no error."""
    card = wire_id(wire)
    _netdevs_del(qmp, [{"id": f"{card}-net"}, {"id": f"{card}-uplink"}])
    if isinstance(wire.nic.backend, Switch):
        with contextlib.suppress(WirtError):
            paths_of_switch = store.find(context.home, "switch", wire.nic.backend.name)
            vde.pull(switches.sockets_of(paths_of_switch), plug_text(paths.name, card))
    release(context, paths.name, wire)


def _move_tap(context: Context, paths: VmPaths, wire: Wire, backend: Backend) -> Wire:
    """A card on a tap stays on it; the tap itself can join another bridge of the same place."""
    old = wire.nic.backend
    nic = msgspec.structs.replace(wire.nic, backend=backend)
    if isinstance(old, Tap) and isinstance(backend, Tap) and backend.bridge:
        place, target = HERE, backend.bridge
        bridge.require_bridge(place, target)
    elif isinstance(old, Network) and isinstance(backend, Network):
        before = store.read(store.find(context.home, "bridge", old.name), store.BridgeRecord)
        after = bridges.ensure_bridge(context, backend.name)
        place, target = bridges.place_of(after), after.interface
        if bridges.place_of(before) != place:
            raise _joined(paths.name, wire)
        bridges.forget(context, old.name, nic.mac)
        bridges.introduce(context, backend.name, paths.name, nic.mac)
    else:
        raise _joined(paths.name, wire)
    bridge.join(place, wire.interface, target)
    return msgspec.structs.replace(wire, nic=nic)


def _joined(machine: str, wire: Wire) -> WrongState:
    return WrongState(
        f"{wire_id(wire)} is joined to its tap while {machine} runs",
        hint=f"add another card: wirt nic add {machine} …; or stop it first",
    )


def set_link(context: Context, name: str, card: str, *, up: bool) -> None:
    """Pull the cable out of a card or put it in, as the guest sees it."""
    with held_card(context, name, card) as held:
        if held.wire is not None:
            with connect(held.paths, read_record(held.paths.record)) as qmp:
                qmp.execute("set_link", {"name": card, "up": up})
            nic = msgspec.structs.replace(held.wire.nic, link=up)
            held.remember(msgspec.structs.replace(held.wire, nic=nic))
        change_card(held.paths, card, "link", None if up else False)


def limit(context: Context, name: str, card: str, rate: Rate) -> None:
    """Change the limits of a card. Raises SpecError where its backend cannot be limited."""
    given = rate if rate.to_guest or rate.from_guest else None
    with held_card(context, name, card) as held:
        change_card(held.paths, card, "rate", msgspec.to_builtins(given))
        if held.wire is not None:
            nic = msgspec.structs.replace(held.wire.nic, rate=given)
            new = msgspec.structs.replace(held.wire, nic=nic)
            set_rate(context, new)
            held.remember(new)


def cards_of(context: Context, name: str) -> list[Wire]:
    """Return the cards as they are plugged in, or as the description has them."""
    paths = find(context.home, name)
    if state.look(paths, ask=False).is_up:
        return list(_wires(paths))
    return list(plain_wires(load_spec(paths)))
