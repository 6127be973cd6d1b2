"""Bringing up a lab: first its record with every name, then the parts, in that order.

So whatever is killed, ``wirt lab down`` knows what may be there, and ``wirt lab up`` goes on.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from wirt.errors import AlreadyExists, WirtError
from wirt.net.switch import parse_vlans
from wirt.spec import lab as spec
from wirt.spec.lab import Lab, LabCable, LabMachine, LabNetwork, LabSwitch
from wirt.store import wires
from wirt.store.layout import NetworkKind
from wirt.store.machines import machine_names, prepare
from wirt.store.wires import LabRecord, Shape
from wirt.vm.context import Context
from wirt.vm.create import Wish, create
from wirt.vm.lab.down import remove_half_made, take_down
from wirt.vm.network.bridges import BridgeWish, create_bridge, ensure_bridge
from wirt.vm.network.cables import create_cable, ensure_cable
from wirt.vm.network.processes import own_process
from wirt.vm.network.switches import SwitchWish, create_switch, ensure_switch
from wirt.vm.source import Source, resolve_or_build
from wirt.vm.start import start
from wirt.vm.wait import wait_for_guest


def bring_up(context: Context, content: str, *, file: str, name: str = "", timeout: float) -> Lab:
    """Make and start all that ``content`` describes; what is up already stays.

    ``timeout`` seconds are left to each guest to answer; 0: nobody waits. A lab that was not
    there before is removed again when something fails. Raises SpecError for the first problem
    of the description, AlreadyExists if another lab has the name, and all that making a
    machine, switch, network or cable raises.
    """
    lab = spec.load(content, file=file, name=name)
    sources = {part: _source(context, one, file) for part, one in lab.machines.items()}
    prepare(context.home)
    remove_half_made(context)
    fresh = enter(context, lab, content)
    with wires.locked(context.home, "lab", lab.name, waiting=context.say) as paths:
        try:
            make_wires(context, lab)
            _make_machines(context, lab, sources)
            _start_machines(context, lab, timeout)
        except BaseException:
            if fresh:
                context.say(f"{lab.name} is taken down again")
                with contextlib.suppress(WirtError):
                    take_down(context, paths)
            raise
    return lab


def _source(context: Context, machine: LabMachine, file: str) -> Source | None:
    if not machine.image:
        return None
    image = machine.image
    if "/" in image:
        image = os.path.join(os.path.dirname(file), image)
    return resolve_or_build(context, image, image_format=machine.format)


def enter(context: Context, lab: Lab, content: str, *, parent: str = "") -> bool:
    """Write the record of a lab with every name that it will own; with ``parent``, of a fork.

    False if this very lab is there already. Raises AlreadyExists.
    """
    if lab.name in wires.names(context.home, "lab"):
        record = wires.read(context.home.network("lab", lab.name), LabRecord)
        if record.content == content and not parent:
            return False
        raise AlreadyExists(
            f"there is a lab {lab.name!r} with another description",
            hint=f"wirt lab down {lab.name}, or give this one another name: --name",
        )
    _refuse_taken(lab.name, _full(lab, lab.machines), machine_names(context.home))
    for kind, parts in _kinds(lab):
        _refuse_taken(lab.name, _full(lab, parts), wires.names(context.home, kind))
    with wires.new(context.home, "lab", lab.name, _record(lab, content, parent)):
        return True


def _kinds(lab: Lab) -> Iterable[tuple[NetworkKind, Iterable[str]]]:
    return ("switch", lab.switches), ("bridge", lab.networks), ("cable", lab.cables)


def _full(lab: Lab, parts: Iterable[str]) -> tuple[str, ...]:
    return tuple(lab.full(part) for part in parts)


def _refuse_taken(lab: str, wanted: Iterable[str], there: Iterable[str]) -> None:
    """A lab owns its names: it would remove what has one of them."""
    for name in sorted(set(wanted) & set(there)):
        raise AlreadyExists(
            f"{name} is there already, and no part of a lab",
            hint=f"remove it, or give the lab another name than {lab}: --name",
        )


def _record(lab: Lab, content: str, parent: str) -> LabRecord:
    return LabRecord(
        created=time.time(),
        content=content,
        parent=parent,
        maker=own_process() if parent else None,
        machines=_full(lab, lab.machines),
        switches=_full(lab, lab.switches),
        networks=_full(lab, lab.networks),
        cables=_full(lab, lab.cables),
    )


def make_wires(context: Context, lab: Lab) -> None:
    """Make the networks, switches and cables that are not there yet, in that order."""
    for part, network in lab.networks.items():
        _make_network(context, lab.full(part), network)
    for part, switch in lab.switches.items():
        _make_switch(context, lab.full(part), switch)
    for part, cable in lab.cables.items():
        _make_cable(context, lab, lab.full(part), cable)


def _make_network(context: Context, name: str, network: LabNetwork) -> None:
    if name in wires.names(context.home, "bridge"):
        ensure_bridge(context, name)
        return
    wish = BridgeWish(address=network.address, private=network.private, outside=network.outside)
    create_bridge(context, name, wish)


def _make_switch(context: Context, name: str, switch: LabSwitch) -> None:
    if name in wires.names(context.home, "switch"):
        ensure_switch(context, name)
        return
    vlans = tuple(member for text in switch.vlans for member in parse_vlans(text))
    create_switch(context, name, SwitchWish(vlans=vlans, uplink=switch.uplink))


def _make_cable(context: Context, lab: Lab, name: str, cable: LabCable) -> None:
    if name in wires.names(context.home, "cable"):
        ensure_cable(context, name)
        return
    a, b = (lab.full(end) if end in lab.switches else end for end in (cable.a, cable.b))
    create_cable(context, name, a, b, shape_of(cable))


def shape_of(cable: LabCable) -> Shape:
    """Return what the cable does to frames."""
    return Shape(cable.delay, cable.jitter, cable.loss, cable.bandwidth)


def _make_machines(context: Context, lab: Lab, sources: Mapping[str, Source | None]) -> None:
    there = set(machine_names(context.home))
    for part, machine in lab.machines.items():
        if lab.full(part) not in there:
            wish = Wish(settings=machine.settings, disk_size=machine.disk_size)
            create(context, lab.full(part), sources[part], wish)


def _start_machines(context: Context, lab: Lab, timeout: float) -> None:
    """Start all machines, as many at a time as there are processors, then wait for guests."""
    names = [lab.full(part) for part in lab.machines]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for name, started in zip(names, pool.map(lambda n: start(context, n), names), strict=True):
            if started:
                context.say(f"{name} is started")
    if not timeout:
        return
    for part, machine in lab.machines.items():
        if machine.image:
            wait_for_guest(context, lab.full(part), timeout=timeout)
