"""What a killed process broke, put right: by the next command that has to do with networks.

A QEMU does not notice that its switch was killed. Each switch that is missing is started, and
each card whose plug the switch does not know is plugged in again; cables likewise.
"""

from __future__ import annotations

import msgspec

from wirt.errors import WirtError
from wirt.net import switch
from wirt.spec.nic import Switch
from wirt.store import wires
from wirt.store.wires import BridgeRecord, SwitchRecord
from wirt.vm.context import Context
from wirt.vm.network import bridges, cables, nics, switches
from wirt.vm.network.capture import PLUG
from wirt.vm.network.cards import wire_id
from wirt.vm.network.host_end import plug_text
from wirt.vm.network.users import running_wires


class Mended(msgspec.Struct, frozen=True):
    """What was put right, and what could not be, in words."""

    switches: tuple[str, ...] = ()
    cards: tuple[str, ...] = ()
    cables: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


def mend(context: Context) -> Mended:
    """Put right whatever is broken; what fails does not stop the rest."""
    failed: list[str] = []
    restarted = []
    for name in wires.names(context.home, "switch"):
        try:
            if not switches.is_up(wires.find(context.home, "switch", name)):
                switches.ensure_switch(context, name)
                restarted.append(name)
            else:
                _stop_flooding(context, name)
        except WirtError as error:
            failed.append(f"switch {name}: {error}")
    return Mended(
        switches=tuple(restarted),
        cards=tuple(_replug_cards(context, failed)),
        cables=tuple(_restart_cables(context, failed)),
        failed=tuple(failed),
    )


def start_persistent(context: Context) -> Mended:
    """Start the networks and switches that are marked for it, and the cables between switches."""
    failed: list[str] = []
    started = []
    for name in wires.names(context.home, "bridge"):
        try:
            if wires.read(wires.find(context.home, "bridge", name), BridgeRecord).persist:
                bridges.ensure_bridge(context, name)
        except WirtError as error:
            failed.append(f"network {name}: {error}")
    for name in wires.names(context.home, "switch"):
        try:
            paths = wires.find(context.home, "switch", name)
            if wires.read(paths, SwitchRecord).persist and not switches.is_up(paths):
                switches.ensure_switch(context, name)
                started.append(name)
        except WirtError as error:
            failed.append(f"switch {name}: {error}")
    laid = _restart_cables(context, failed) if started else []
    return Mended(switches=tuple(started), cables=tuple(laid), failed=tuple(failed))


def _stop_flooding(context: Context, name: str) -> None:
    """A capture that was killed leaves its switch a hub."""
    if PLUG not in _plugs(context, name):
        sockets = switches.sockets_of(wires.find(context.home, "switch", name))
        if switch.floods(sockets):
            switch.flood(sockets, on=False)


def _replug_cards(context: Context, failed: list[str]) -> list[str]:
    known: dict[str, set[str]] = {}
    done = []
    for machine, wire in list(running_wires(context)):
        backend = wire.nic.backend
        if not isinstance(backend, Switch):
            continue
        card = wire_id(wire)
        try:
            if backend.name not in known:
                known[backend.name] = _plugs(context, backend.name)
            if plug_text(machine, card) not in known[backend.name]:
                nics.replug(context, machine, card)
                done.append(f"{machine}:{card}")
        except WirtError as error:
            failed.append(f"{machine}:{card}: {error}")
    return done


def _plugs(context: Context, name: str) -> set[str]:
    sockets = switches.sockets_of(wires.find(context.home, "switch", name))
    return {plug for port in switch.ports(sockets) for plug in port.plugs}


def _restart_cables(context: Context, failed: list[str]) -> list[str]:
    done = []
    for name in wires.names(context.home, "cable"):
        try:
            if cables.ensure_cable(context, name):
                done.append(name)
        except WirtError as error:
            failed.append(f"cable {name}: {error}")
    return done
