"""Forking a lab: all its machines at one instant, and its wires again, closed on themselves.

1. the new lab's record, which names its maker, and its wires; 2. every machine of the old one
is frozen, all at one instant (``wirt.vm.forking.instant``), and goes on; 3. the copies are
made, on the new wires, standing still; 4. they go on; 5. the record says that the lab is whole.
Killed before that, the next command on labs removes it, and whoever meets a machine of the old
lab lets it go on.

What was on a wire at that instant is lost in both labs, as on any network; what guests hold of
each other's connections is the same in both, so their connections go on. The new wires lead
nowhere: machines have the same addresses in both labs and must never meet.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import msgspec

from wirt.errors import WirtError, WrongState
from wirt.host.failpoint import failpoint
from wirt.spec import lab as spec
from wirt.spec.lab import Lab, LabMachine
from wirt.spec.nic import Backend, Network, Switch
from wirt.store import wires
from wirt.store.layout import NetworkPaths
from wirt.store.machines import find, prepare
from wirt.store.states import State, collect, process_label, release
from wirt.store.wires import LabRecord
from wirt.vm import state
from wirt.vm.context import Context
from wirt.vm.forking.freeze import freeze
from wirt.vm.forking.instant import Instant
from wirt.vm.forking.source import Frozen
from wirt.vm.forking.spawn import Wish, spawn_from
from wirt.vm.lab.down import remove_half_made, take_down
from wirt.vm.lab.up import enter, make_wires
from wirt.vm.stop import resume

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
    remove_half_made(context)
    with wires.locked(context.home, "lab", name, waiting=context.say) as source:
        record = wires.read(source, LabRecord)
        old = spec.load(record.content, file="", name=name)
        copy, notes = _closed(spec.load(record.content, file="", name=new))
        _require_running(context, old)
        enter(context, copy, record.content, parent=name)
        failpoint("lab-entered")
        with wires.locked(context.home, "lab", new, waiting=context.say) as paths:
            try:
                make_wires(context, copy)
                failpoint("lab-wired")
                made = _fork(context, old, copy, notes)
                _make_whole(paths)
            except BaseException:
                _give_up(context, paths)
                raise
            return made


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


def _require_running(context: Context, lab: Lab) -> None:
    for part in lab.machines:
        paths = find(context.home, lab.full(part))
        state.require_running(paths)
        status = state.look(paths).status
        if status != "running":
            raise WrongState(f"{paths.name} is {status}", hint=f"wirt resume {paths.name}")


def _fork(context: Context, old: Lab, copy: Lab, notes: tuple[str, ...]) -> LabFork:
    parts = list(old.machines)
    instant = Instant(len(parts))
    frozen: dict[str, Frozen] = {}
    try:
        _freeze_all(context, old, instant, frozen)
        failpoint("lab-frozen")
        _each(parts, lambda part: _spawn(context, old, copy, part, frozen[part].state))
        failpoint("lab-spawned")
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
        pause=instant.pause,
        skew=instant.skew,
        notes=notes,
    )


def _freeze_all(context: Context, lab: Lab, instant: Instant, frozen: dict[str, Frozen]) -> None:
    """Freeze all machines at one instant; they go on. ``frozen`` gets what there is to release."""

    def one(part: str) -> None:
        named = Context(context.home, lambda text: context.say(f"{part}: {text}"))
        try:
            frozen[part] = freeze(named, lab.full(part), instant=instant)
        except BaseException as error:
            if isinstance(error, WirtError):
                error.concerns(lab.full(part))
            instant.fail(error)
            raise

    with ThreadPoolExecutor(len(lab.machines)) as pool:
        running = [pool.submit(one, part) for part in lab.machines]
        try:
            wait(running)
        except BaseException as error:
            instant.fail(error)
            wait(running)
            raise
    if instant.cause is not None:
        raise instant.cause


def _make_whole(paths: NetworkPaths) -> None:
    """From now on the lab stays, whatever becomes of this command."""
    record = wires.read(paths, LabRecord)
    wires.write(paths, msgspec.structs.replace(record, maker=None))
    failpoint("lab-whole")


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
