"""Small devices: entropy, balloon, generation id, watchdog, panic notifier."""

from __future__ import annotations

from wirt.qapi.value import Argument, QapiObject, device, user_object
from wirt.qemu.board import Board
from wirt.qemu.runtime import Runtime
from wirt.spec.machine import Machine


def entropy(board: Board) -> list[Argument]:
    """Return virtio-rng fed by the host's generator."""
    source: QapiObject = {"qom-type": "rng-random", "id": "entropy", "filename": "/dev/urandom"}
    card: QapiObject = {"driver": "virtio-rng-pci", "id": "rng", "rng": "entropy"}
    return [user_object(source), device({**card, **board.single("rng")})]


def balloon(board: Board) -> list[Argument]:
    """Return the balloon; free pages go back to the host by themselves."""
    value: QapiObject = {
        "driver": "virtio-balloon-pci",
        "id": "balloon",
        "free-page-reporting": True,
        **board.single("balloon"),
    }
    return [device(value)]


def generation_id(runtime: Runtime) -> list[Argument]:
    """Return vmgenid: its change tells the guest that it was forked or restored."""
    return [device({"driver": "vmgenid", "id": "vmgenid", "guid": runtime.vmgenid})]


def panic_notifier(machine: Machine) -> list[Argument]:
    """Return pvpanic, by which a guest says that its kernel panicked.

    Without it ``-action panic=`` does nothing. The guest finds it through ACPI.
    """
    if not (machine.acpi and machine.panic_notifier):
        return []
    return [device({"driver": "pvpanic", "id": "pvpanic"})]


def watchdog(machine: Machine, board: Board) -> list[Argument]:
    """Return the watchdog; its action is ``-action watchdog=``."""
    if machine.watchdog is None:
        return []
    value: QapiObject = {"driver": machine.watchdog.model, "id": "watchdog"}
    if machine.watchdog.model == "i6300esb":
        value.update(board.single("watchdog"))
    return [device(value)]
