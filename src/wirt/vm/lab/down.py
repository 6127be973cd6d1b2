"""Taking a lab down: all that its record names, in whatever state a crash left it.

A fork of a lab whose command was killed before it was whole goes with the next command on labs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from wirt.errors import NotFound, WirtError
from wirt.store import wires
from wirt.store.layout import NetworkPaths
from wirt.store.locks import command_lock
from wirt.store.wires import LabRecord
from wirt.vm.context import Context
from wirt.vm.network.bridges import remove_bridge
from wirt.vm.network.cables import remove_cable
from wirt.vm.network.processes import living
from wirt.vm.network.switches import remove_switch
from wirt.vm.remove import remove

_AT_ONCE = 8
_AWAY_SECONDS = 10.0


def bring_down(context: Context, name: str) -> LabRecord:
    """Remove machines, cables, switches and networks of a lab, and the lab.

    What is gone already is not missed. If a part cannot be removed, the lab stays with what is
    left, and the first error is raised. Raises NotFound.
    """
    remove_half_made(context, but=name)
    with wires.locked(context.home, "lab", name, waiting=context.say) as paths:
        return take_down(context, paths)


def take_down(context: Context, paths: NetworkPaths) -> LabRecord:
    """The same for a lab whose lock the caller holds."""
    record = wires.read(paths, LabRecord)
    failures: list[WirtError] = []

    def each(names: Sequence[str], act: Callable[[str], None]) -> None:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            failures.extend(error for error in pool.map(_attempt(act), names) if error)

    each(record.machines, lambda name: remove(context, name, force=True))
    each(record.cables, lambda name: remove_cable(context, name))
    each(record.switches, lambda name: remove_switch(context, name, force=True))
    each(record.networks, lambda name: remove_bridge(context, name, force=True))
    if failures:
        raise failures[0]
    wires.remove(context.home, paths)
    return record


def remove_half_made(context: Context, *, but: str = "") -> None:
    """Take down every fork whose maker was killed, but the lab that the caller removes anyway."""
    for name in wires.names(context.home, "lab"):
        with contextlib.suppress(WirtError):  # it stays, and whoever takes it down is told why
            if name != but and _is_half_made(context.home.network("lab", name)):
                _remove_half_made(context, context.home.network("lab", name))


def _is_half_made(paths: NetworkPaths) -> bool:
    record = wires.read(paths, LabRecord)
    return record.maker is not None and living(record.maker) is None


def _remove_half_made(context: Context, paths: NetworkPaths) -> None:
    # A program that the killed maker was just starting may have its lock for a moment.
    with command_lock(paths.lock, timeout=_AWAY_SECONDS):
        if _is_half_made(paths):
            context.say(f"{paths.name}, whose fork was interrupted, is taken down")
            take_down(context, paths)


def _attempt(act: Callable[[str], None]) -> Callable[[str], WirtError | None]:
    def attempt(name: str) -> WirtError | None:
        try:
            with contextlib.suppress(NotFound):
                act(name)
        except WirtError as error:
            return error
        return None

    return attempt
