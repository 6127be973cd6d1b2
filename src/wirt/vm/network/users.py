"""Which machines are plugged into a wire: what their records say, as far as they run."""

from __future__ import annotations

from collections.abc import Iterator

from wirt.errors import AlreadyExists, WirtError
from wirt.spec.nic import Backend, Network, Switch, Tap, Vde
from wirt.store.layout import NetworkKind
from wirt.store.locks import run_lock_is_held
from wirt.store.machines import machine_names
from wirt.store.record import Wire, read_record
from wirt.store.wires import SwitchRecord, names, read
from wirt.vm.context import Context


def running_wires(context: Context) -> Iterator[tuple[str, Wire]]:
    """Return every card of every machine that runs, with the machine's name."""
    for machine in machine_names(context.home):
        paths = context.home.vm(machine)
        try:
            record = read_record(paths.record)
            up = record.run is not None and run_lock_is_held(paths.run_lock)
        except WirtError:
            continue  # `wirt ls` says what is wrong with it
        for wire in record.run.wires if up and record.run is not None else ():
            yield machine, wire


def is_on(backend: Backend, kind: NetworkKind, name: str) -> bool:
    """True if the backend is plugged into that switch or network."""
    if kind == "switch":
        return isinstance(backend, Switch) and backend.name == name
    return isinstance(backend, Network) and backend.name == name


def users_of(context: Context, kind: NetworkKind, name: str) -> list[str]:
    """Return what uses a switch or network now: machines, and switches with an uplink there."""
    found = {m for m, wire in running_wires(context) if is_on(wire.nic.backend, kind, name)}
    for switch in names(context.home, "switch") if kind == "bridge" else ():
        record = read(context.home.network("switch", switch), SwitchRecord)
        if record.uplink == "network" and record.target == name:
            found.add(f"the switch {switch}")
    return sorted(found)


def wire_key(backend: Backend) -> tuple[str, str] | None:
    """Return what two cards have in common that hear each other; None: nothing known."""
    match backend:
        case Switch():
            return "switch", backend.name
        case Network():
            return "network", backend.name
        case Tap() if backend.bridge:
            return "bridge", backend.bridge
        case Vde():
            return "vde", backend.path
        case _:
            return None


def require_own_mac(context: Context, machine: str, mac: str, backend: Backend) -> None:
    """Refuse a MAC address that another running machine has on the same wire.

    Raises AlreadyExists.
    """
    key = wire_key(backend)
    for other, wire in running_wires(context) if key and mac else ():
        if other != machine and wire.nic.mac.lower() == mac.lower():
            if wire_key(wire.nic.backend) != key:
                continue
            raise AlreadyExists(
                f"{other} has the address {mac} on the same {' '.join(key or ())}",
                hint="give one of them another: wirt set VM 'nics[0].mac=52:54:00:…'",
            )
