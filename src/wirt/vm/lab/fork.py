"""Forking a lab: all its machines at one instant, and its wires again, closed on themselves.

1. the new lab's record and wires; 2. every machine of the old one stands still; 3. each is
frozen; 4. they go on; 5. the copies are made, on the new wires, standing still; 6. they go on.
What was on a wire at that instant is lost in both labs, as on any network; what guests hold of
each other's connections is the same in both, so their connections go on. The new wires lead
nowhere: machines have the same addresses in both labs and must never meet.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import msgspec

from wirt.errors import WirtError, WrongState
from wirt.spec import lab as spec
from wirt.spec.lab import Lab, LabMachine
from wirt.spec.nic import Backend, Network, Switch
from wirt.store import wires
from wirt.store.layout import NetworkPaths
from wirt.store.machines import find, prepare
from wirt.store.record import read_record
from wirt.store.states import GuestFacts, State, collect, process_label, release
from wirt.store.wires import LabRecord
from wirt.vm import state
from wirt.vm.context import Context
from wirt.vm.forking.freeze import freeze
from wirt.vm.forking.guest import look_at_guest, ports_taken
from wirt.vm.forking.source import Frozen
from wirt.vm.forking.spawn import Wish, spawn_from
from wirt.vm.lab.down import take_down
from wirt.vm.lab.recovery import locked_lab, mark_standing
from wirt.vm.lab.up import enter, make_wires
from wirt.vm.monitor import connect
from wirt.vm.stop import pause, resume

T = TypeVar("T")
U = TypeVar("U")


class LabFork(msgspec.Struct, frozen=True):
    """What forking a lab made and cost. Times in seconds."""

    source: str
    name: str
    machines: tuple[str, ...]
    pause: float
    """From when the first machine stood still until the last one ran again."""
    skew: float
    """Between the first and the last that stood still: the width of the instant."""
    notes: tuple[str, ...] = ()


def fork_lab(context: Context, name: str, new: str) -> LabFork:
    """Fork the lab ``name`` into ``new``; the old one goes on. All or nothing.

    Raises NotFound, AlreadyExists, WrongState (a machine does not run, or cannot be forked).
    """
    prepare(context.home)
    with locked_lab(context, name) as source:
        record = wires.read(source, LabRecord)
        old = spec.load(record.content, file="", name=name)
        copy, notes = _closed(spec.load(record.content, file="", name=new))
        guests = _look(context, old)
        enter(context, copy, record.content, parent=name)
        with wires.locked(context.home, "lab", new, waiting=context.say) as paths:
            try:
                make_wires(context, copy)
                return _fork(context, source, old, copy, guests, notes)
            except BaseException:
                _give_up(context, paths)
                raise


def _closed(lab: Lab) -> tuple[Lab, tuple[str, ...]]:
    """Return the lab without what leads out of it, and what that was."""
    notes = []
    switches, networks, cables = {}, {}, {}
    for name, switch in lab.switches.items():
        switches[name] = msgspec.structs.replace(switch, uplink="none")
        if switch.uplink != "none":
            notes.append(f"the switch {name} has no uplink")
    for name, network in lab.networks.items():
        networks[name] = msgspec.structs.replace(network, private=True, outside=False)
        if network.outside or not network.private:
            notes.append(f"the network {name} has no way out")
    for name, cable in lab.cables.items():
        if cable.b in lab.switches:
            cables[name] = cable
        else:
            notes.append(f"the cable {name} to {cable.b} is left out")
    return Lab(lab.name, switches, networks, cables, lab.machines), tuple(notes)


def _look(context: Context, lab: Lab) -> dict[str, GuestFacts]:
    """Ask every guest what it is, while it can answer. Raises WrongState if one is down."""

    def look(part: str) -> GuestFacts:
        paths = find(context.home, lab.full(part))
        found = state.require_running(paths)
        if found.status != "running":
            raise WrongState(f"{paths.name} is {found.status}", hint=f"wirt resume {paths.name}")
        with connect(paths, read_record(paths.record)) as qmp, ports_taken(paths):
            return look_at_guest(paths, qmp)

    parts = list(lab.machines)
    return dict(zip(parts, _each(parts, look), strict=True))


def _fork(
    context: Context,
    source: NetworkPaths,
    old: Lab,
    copy: Lab,
    guests: Mapping[str, GuestFacts],
    notes: tuple[str, ...],
) -> LabFork:
    parts = list(old.machines)
    frozen: dict[str, Frozen] = {}
    try:
        with _still(context, source, [old.full(part) for part in parts]) as watch:
            _each(parts, lambda part: _freeze(context, old.full(part), guests[part], part, frozen))
        _each(parts, lambda part: _spawn(context, old, copy, part, frozen[part].state))
        _each(parts, lambda part: resume(context, copy.full(part)))
    finally:
        for one in frozen.values():
            release(one.state, process_label())
            with contextlib.suppress(WirtError):
                collect(context.home, one.state.id)
    return LabFork(
        source=old.name,
        name=copy.name,
        machines=tuple(copy.full(part) for part in parts),
        pause=watch.pause,
        skew=watch.skew,
        notes=notes,
    )


class _Watch:
    """When machines stood still, and when the last ran again."""

    def __init__(self) -> None:
        self.stopped: list[float] = []
        self.resumed = 0.0

    @property
    def skew(self) -> float:
        return max(self.stopped) - min(self.stopped)

    @property
    def pause(self) -> float:
        return self.resumed - min(self.stopped)


@contextmanager
def _still(context: Context, lab: NetworkPaths, names: Sequence[str]) -> Iterator[_Watch]:
    """Let all machines stand still within the block, and go on after it, come what may."""
    watch = _Watch()

    def stop(name: str) -> None:
        pause(context, name)
        watch.stopped.append(time.monotonic())

    mark_standing(lab, standing=True)
    try:
        _each(names, stop)
        yield watch
    finally:
        _each(names, lambda name: _go_on(context, name))
        watch.resumed = time.monotonic()
        mark_standing(lab, standing=False)


def _go_on(context: Context, name: str) -> None:
    try:
        resume(context, name)
    except WirtError as error:
        context.say(f"{name} does not go on: {error}")


def _freeze(
    context: Context, name: str, guest: GuestFacts, part: str, frozen: dict[str, Frozen]
) -> None:
    frozen[part] = freeze(context, name, guest=guest)


def _spawn(context: Context, old: Lab, copy: Lab, part: str, frozen: State) -> None:
    networks = _rewired(old, copy, old.machines[part])
    wish = Wish(same_identity=True, paused=True, networks=networks)
    spawn_from(context, frozen, copy.full(part), wish)


def _rewired(old: Lab, copy: Lab, machine: LabMachine) -> dict[int, Backend]:
    """Return the cards whose wire is the lab's own, on the wire of the copy."""
    found: dict[int, Backend] = {}
    for index, nic in enumerate(machine.machine.nics):
        if isinstance(nic.backend, Switch | Network):
            part = nic.backend.name.removeprefix(old.full(""))
            found[index] = msgspec.structs.replace(nic.backend, name=copy.full(part))
    return found


def _give_up(context: Context, paths: NetworkPaths) -> None:
    """Leave nothing of a lab that could not be forked whole."""
    context.say(f"{paths.name} is taken down again")
    with contextlib.suppress(WirtError):
        take_down(context, paths)


def _each(items: Sequence[T], act: Callable[[T], U]) -> list[U]:
    """Do it for all at once; when all have ended, raise the first error."""
    with ThreadPoolExecutor(max(1, len(items), os.cpu_count() or 1)) as pool:
        running = [pool.submit(act, item) for item in items]
    return [future.result() for future in running]
