"""Everything there is of networks at this moment: what lists and the map show."""

from __future__ import annotations

import msgspec

from wirt.errors import WirtError
from wirt.spec.backend_text import format_backend
from wirt.store import wires
from wirt.store.locks import run_lock_is_held
from wirt.store.machines import machine_names
from wirt.store.record import Wire, read_record
from wirt.vm.context import Context
from wirt.vm.description import load_spec
from wirt.vm.network import bridges, cables, switches
from wirt.vm.network.cards import wire_id
from wirt.vm.network.uplinks import plain_wires
from wirt.vm.network.users import wire_key


class Card(msgspec.Struct, frozen=True):
    """A card of a machine, and what it is plugged into (``switch:dmz``; empty: nothing shared)."""

    name: str
    model: str
    mac: str
    backend: str
    on: str
    link: bool
    interface: str
    address: str = ""
    """That DHCP gave, where wirt gives it."""


class Machine(msgspec.Struct, frozen=True):
    """A machine and its cards."""

    name: str
    up: bool
    cards: tuple[Card, ...]


class Survey(msgspec.Struct, frozen=True):
    """Machines, switches, bridge networks and cables."""

    machines: tuple[Machine, ...] = ()
    switches: tuple[switches.SwitchFacts, ...] = ()
    bridges: tuple[bridges.BridgeFacts, ...] = ()
    cables: tuple[cables.CableFacts, ...] = ()


def survey(context: Context) -> Survey:
    """Look at everything; what is damaged is left out. Nothing is started."""
    home = context.home
    found_bridges = tuple(
        bridges.bridge_facts(context, name) for name in wires.names(home, "bridge")
    )
    given = {
        (facts.name, lease.mac): lease.address for facts in found_bridges for lease in facts.leases
    }
    return Survey(
        machines=tuple(_machine(context, name, given) for name in machine_names(home)),
        switches=tuple(
            switches.switch_facts(context, name) for name in wires.names(home, "switch")
        ),
        bridges=found_bridges,
        cables=tuple(cables.cable_facts(context, name) for name in wires.names(home, "cable")),
    )


def _machine(context: Context, name: str, given: dict[tuple[str, str], str]) -> Machine:
    paths = context.home.vm(name)
    try:
        up = run_lock_is_held(paths.run_lock)
        run = read_record(paths.record).run
        plugged = run.wires if up and run is not None else plain_wires(load_spec(paths))
    except WirtError:
        return Machine(name, up=False, cards=())
    return Machine(name, up, tuple(_card(wire, given) for wire in plugged))


def _card(wire: Wire, given: dict[tuple[str, str], str]) -> Card:
    key = wire_key(wire.nic.backend)
    return Card(
        name=wire_id(wire),
        model=wire.nic.model,
        mac=wire.nic.mac,
        backend=format_backend(wire.nic.backend),
        on=":".join(key) if key else "",
        link=wire.nic.link,
        interface=wire.interface,
        address=given.get((key[1], wire.nic.mac.lower()), "") if key else "",
    )
