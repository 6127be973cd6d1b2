"""What a lab is doing: its machines and wires as they are now."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import msgspec

from wirt.errors import NotFound, WirtError
from wirt.spec.lab import full_name
from wirt.store import wires
from wirt.store.wires import LabRecord
from wirt.vm.context import Context
from wirt.vm.lab.down import remove_half_made
from wirt.vm.listing import Row, list_machines
from wirt.vm.network.bridges import BridgeFacts, bridge_facts
from wirt.vm.network.cables import CableFacts, cable_facts
from wirt.vm.network.switches import SwitchFacts, switch_facts


class LabRow(msgspec.Struct, frozen=True):
    """A lab in a list. ``status``: ``up``, ``partial`` or ``down``; Unix seconds."""

    name: str
    status: str
    machines: int
    switches: int
    networks: int
    cables: int
    created: float
    parent: str = ""


class LabView(msgspec.Struct, frozen=True):
    """A lab with all its parts; ``missing`` are names that its record has and the host not."""

    name: str
    status: str
    machines: tuple[Row, ...]
    switches: tuple[SwitchFacts, ...]
    networks: tuple[BridgeFacts, ...]
    cables: tuple[CableFacts, ...]
    missing: tuple[str, ...]


def list_labs(context: Context) -> list[LabRow]:
    """Return all labs, sorted by name."""
    remove_half_made(context)
    rows = {row.name: row for row in list_machines(context)}
    found = []
    for name in wires.names(context.home, "lab"):
        with contextlib.suppress(NotFound):
            record = _read(context, name)
            found.append(
                LabRow(
                    name,
                    _status(record, rows),
                    len(record.machines),
                    len(record.switches),
                    len(record.networks),
                    len(record.cables),
                    record.created,
                    record.parent,
                )
            )
    return found


def view(context: Context, name: str) -> LabView:
    """Return one lab as it is now. Raises NotFound."""
    remove_half_made(context)
    wires.find(context.home, "lab", name)
    record = _read(context, name)
    rows = {row.name: row for row in list_machines(context)}
    missing = [machine for machine in record.machines if machine not in rows]
    switches, cables, networks = [], [], []
    for switch in record.switches:
        with _noting(switch, missing):
            switches.append(switch_facts(context, switch))
    for cable in record.cables:
        with _noting(cable, missing):
            cables.append(cable_facts(context, cable))
    for network in record.networks:
        with _noting(network, missing):
            networks.append(bridge_facts(context, network))
    return LabView(
        name=name,
        status=_status(record, rows),
        machines=tuple(rows[machine] for machine in record.machines if machine in rows),
        switches=tuple(switches),
        networks=tuple(networks),
        cables=tuple(cables),
        missing=tuple(missing),
    )


def machine_of(context: Context, lab: str, part: str) -> str:
    """Return the full name of a machine of a lab. Raises NotFound."""
    wires.find(context.home, "lab", lab)
    record = _read(context, lab)
    full = full_name(lab, part)
    if full not in record.machines:
        known = ", ".join(name.partition(".")[2] for name in record.machines)
        raise NotFound(f"there is no machine {part!r} in {lab}", hint=f"it has: {known}")
    return full


def _read(context: Context, name: str) -> LabRecord:
    return wires.read(context.home.network("lab", name), LabRecord)


def _status(record: LabRecord, rows: dict[str, Row]) -> str:
    running = sum(
        name in rows and rows[name].status in {"running", "paused"} for name in record.machines
    )
    if running == len(record.machines):
        return "up"
    return "partial" if running else "down"


@contextlib.contextmanager
def _noting(name: str, missing: list[str]) -> Iterator[None]:
    """Note a part that is gone or damaged, and go on."""
    try:
        yield
    except WirtError:
        missing.append(name)
