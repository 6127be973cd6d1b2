"""Forwards of host ports to a guest on a user network, while it runs and for later."""

from __future__ import annotations

import msgspec

from wirt.errors import AlreadyExists, HostError, NotFound, WrongState
from wirt.qemu.netdev import forward_text
from wirt.qemu.nic import nic_id
from wirt.spec.machine import Machine
from wirt.spec.nic import Forward, User
from wirt.store.machines import find
from wirt.store.record import read_record
from wirt.vm import state
from wirt.vm.context import Context
from wirt.vm.description import load_spec
from wirt.vm.monitor import connect
from wirt.vm.network.cards import change_card
from wirt.vm.network.nics import HeldCard, held_card
from wirt.vm.preflight import nic_with_ports


def forwards_of(context: Context, name: str) -> list[Forward]:
    """Return the forwards that are open, or would be at the next start."""
    paths = find(context.home, name)
    if state.look(paths, ask=False).is_up:
        run = read_record(paths.record).run
        nics = [wire.nic for wire in run.wires] if run is not None else []
    else:
        nics = list(load_spec(paths).nics)
    return [
        forward for nic in nics if isinstance(nic.backend, User) for forward in nic.backend.forwards
    ]


def add_forward(context: Context, name: str, forward: Forward, card: str = "") -> Forward:
    """Make a port of the guest reachable on the host; return it with the port that it got.

    Raises Busy for a taken port, AlreadyExists, WrongState without a user network.
    """
    card = card or _user_card(context, name)
    with held_card(context, name, card) as held:
        backend = _backend(held, card)
        if _same(backend.forwards, forward) and forward.host_port:
            raise AlreadyExists(f"{forward_text(forward)} is forwarded already")
        nic = held.wire.nic if held.wire else load_spec(held.paths).nics[held.place]
        one = User(forwards=(forward,))
        opened = nic_with_ports(msgspec.structs.replace(nic, backend=one)).backend
        made = opened.forwards[0] if held.wire and isinstance(opened, User) else forward
        if held.wire is not None:
            _tell(held, f"hostfwd_add {card}-net {forward_text(made)}")
        _store(held, card, (*backend.forwards, made))
        return made


def remove_forward(context: Context, name: str, forward: Forward, card: str = "") -> None:
    """Undo ``add_forward``; the guest's port need not be said. Raises NotFound."""
    card = card or _user_card(context, name)
    with held_card(context, name, card) as held:
        backend = _backend(held, card)
        found = _same(backend.forwards, forward)
        if not found:
            raise NotFound(
                f"{name} forwards no {forward.protocol} port {forward.host_port}",
                hint=f"wirt net forward {name} ls",
            )
        if held.wire is not None:
            text = forward_text(found[0]).partition("-")[0]
            _tell(held, f"hostfwd_remove {card}-net {text}")
        _store(held, card, tuple(one for one in backend.forwards if one != found[0]))


def _same(forwards: tuple[Forward, ...], forward: Forward) -> list[Forward]:
    """Return those on the same port of the host."""
    key = (forward.protocol, forward.host_address, forward.host_port)
    return [one for one in forwards if (one.protocol, one.host_address, one.host_port) == key]


def _user_card(context: Context, name: str) -> str:
    paths = find(context.home, name)
    machine: Machine = load_spec(paths)
    for index, nic in enumerate(machine.nics):
        if isinstance(nic.backend, User):
            return nic_id(nic, index)
    raise WrongState(
        f"{name} has no card on a user network, the only one with forwards",
        hint=f"wirt nic add {name} user",
    )


def _backend(held: HeldCard, card: str) -> User:
    nic = held.wire.nic if held.wire else load_spec(held.paths).nics[held.place]
    if not isinstance(nic.backend, User):
        raise WrongState(f"{card} is not on a user network", hint="wirt nic ls VM")
    return nic.backend


def _tell(held: HeldCard, command: str) -> None:
    """QEMU has no QMP for this: an answer of HMP that says something says what failed."""
    with connect(held.paths, read_record(held.paths.record)) as qmp:
        said = qmp.execute("human-monitor-command", {"command-line": command}, reply=str)
    if said.strip() and "removed" not in said:
        raise HostError(f"QEMU refused: {said.strip()}", hint="is the port free, and yours?")


def _store(held: HeldCard, card: str, forwards: tuple[Forward, ...]) -> None:
    if held.wire is not None and isinstance(held.wire.nic.backend, User):
        backend = msgspec.structs.replace(held.wire.nic.backend, forwards=forwards)
        nic = msgspec.structs.replace(held.wire.nic, backend=backend)
        held.remember(msgspec.structs.replace(held.wire, nic=nic))
    stored = load_spec(held.paths).nics[held.place].backend
    if isinstance(stored, User):
        new = msgspec.structs.replace(stored, forwards=forwards)
        change_card(held.paths, card, "backend", msgspec.to_builtins(new))
