"""Cards in a machine's description, by name: ``wirt nic`` changes one without the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from wirt.errors import NotFound
from wirt.qemu.nic import nic_id
from wirt.spec.machine import Machine
from wirt.spec.nic import Nic
from wirt.store.layout import VmPaths
from wirt.store.machines import read_spec
from wirt.store.record import Wire
from wirt.vm.description import load_spec
from wirt.vm.edit import replace_locked


def wire_id(wire: Wire) -> str:
    """Return the name of a card that is plugged in."""
    return nic_id(wire.nic, wire.index)


def find_card(paths: VmPaths, machine: Machine, card: str) -> int:
    """Return the place of a card in the description. Raises NotFound."""
    names = [nic_id(nic, index) for index, nic in enumerate(machine.nics)]
    if card in names:
        return names.index(card)
    raise NotFound(
        f"{paths.name} has no network card {card[:40]!r}",
        hint=f"it has: {', '.join(names) or 'none'}",
    )


def free_card_name(machine: Machine, plugged: tuple[Wire, ...]) -> str:
    """Return a name that no card of the machine has."""
    used = {nic_id(nic, index) for index, nic in enumerate(machine.nics)}
    used |= {wire_id(wire) for wire in plugged}
    number = 0
    while f"nic{number}" in used:
        number += 1
    return f"nic{number}"


def add_card(paths: VmPaths, nic: Nic) -> None:
    """Add a card to the description. Raises SpecError."""
    _edit(paths, lambda nics: nics.append(_table(msgspec.to_builtins(nic))))


def remove_card(paths: VmPaths, card: str) -> None:
    """Remove a card from the description; the others keep their names. Raises NotFound."""
    machine = load_spec(paths)
    place = find_card(paths, machine, card)

    def change(nics: Any) -> None:
        for index in range(place + 1, len(nics)):
            if not machine.nics[index].id:
                nics[index]["id"] = nic_id(machine.nics[index], index)
        del nics[place]

    _edit(paths, change)


def change_card(paths: VmPaths, card: str, key: str, value: Any) -> None:
    """Set one setting of a card in the description; None removes it. Raises NotFound."""
    place = find_card(paths, load_spec(paths), card)

    def change(nics: Any) -> None:
        if value is None:
            nics[place].pop(key, None)
        else:
            nics[place][key] = value

    _edit(paths, change)


def _table(value: dict[str, Any]) -> Any:
    import tomlkit

    return tomlkit.item(value)


def _edit(paths: VmPaths, change: Callable[[Any], None]) -> None:
    import tomlkit

    document = tomlkit.parse(read_spec(paths))
    if not document.get("nics"):
        document["nics"] = tomlkit.aot()
    change(document["nics"])
    replace_locked(paths, tomlkit.dumps(document))
