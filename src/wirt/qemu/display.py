"""The graphics card and who shows its picture."""

from __future__ import annotations

from collections.abc import Sequence

from wirt.errors import SpecError
from wirt.qapi.value import Argument, QapiObject, device
from wirt.qemu.board import Board
from wirt.qemu.runtime import Runtime, unix_path
from wirt.spec.console import Display, Spice, Video, Vnc, Window
from wirt.units import MIB

_CARDS = {
    "std": "VGA",
    "virtio": "virtio-vga",
    "cirrus": "cirrus-vga",
    "vmware": "vmware-svga",
    "qxl": "qxl-vga",
}
_ISA_CARDS = {"std": "isa-vga", "cirrus": "isa-cirrus-vga"}


def video(card: Video, board: Board) -> list[Argument]:
    """Return the graphics card. Raises SpecError where the board has no place for it."""
    if card.model == "none":
        return []
    cards = _CARDS if board.has_pci else _ISA_CARDS
    if card.model not in cards:
        raise SpecError(
            f"{board.machine_type} has no {card.model} card", key="video.model", hint="use std"
        )
    value: QapiObject = {"driver": cards[card.model], "id": "video", **board.video()}
    if card.memory:
        value["vgamem_mb"] = _megabytes(card)
    return [device(value)]


def _megabytes(card: Video) -> int:
    if card.model == "virtio":
        raise SpecError("virtio has no video memory of its own", key="video.memory")
    allowed = (4, 8, 16) if card.model == "cirrus" else tuple(1 << power for power in range(10))
    if card.memory not in {size * MIB for size in allowed}:
        sizes = ", ".join(f"{size}M" for size in allowed)
        raise SpecError(f"a {card.model} card has one of {sizes}", key="video.memory")
    return card.memory // MIB


def displays(wanted: Sequence[Display], runtime: Runtime) -> list[Argument]:
    """Return servers and windows; without a window nothing is drawn on the host."""
    for kind in (Window, Spice):
        if sum(isinstance(display, kind) for display in wanted) > 1:
            raise SpecError(f"there can be one {kind.__name__.lower()}", key="displays")
    made: list[Argument] = []
    if not any(isinstance(display, Window) for display in wanted):
        made.append(Argument("-display", "none"))
    return [*made, *(_display(display, index, runtime) for index, display in enumerate(wanted))]


def _display(display: Display, index: int, runtime: Runtime) -> Argument:
    match display:
        case Vnc():
            return Argument("-vnc", _vnc(display, index, runtime))
        case Spice():
            return Argument("-spice", _spice(display, index, runtime))
        case Window():
            words: list[str] = [display.toolkit]
            if display.full_screen and display.toolkit != "curses":
                words.append("full-screen=on")
            return Argument("-display", ",".join([*words, *display.options]))


def _vnc(display: Vnc, index: int, runtime: Runtime) -> str:
    if display.listen == "unix":
        at = f"unix:{unix_path(runtime.socket(f'vnc{index}'))}"
    elif display.listen.startswith("unix:"):
        at = f"unix:{unix_path(runtime.path(display.listen.removeprefix('unix:')))}"
    else:
        at = display.listen
        _address(at, index, "ADDRESS:DISPLAY")
    return ",".join([at.replace(",", ",,"), *display.options])


def _spice(display: Spice, index: int, runtime: Runtime) -> QapiObject:
    value: QapiObject = {"disable-ticketing": True}
    if display.listen == "unix":
        return {"unix": True, "addr": unix_path(runtime.socket(f"spice{index}")), **value}
    address, port = _address(display.listen, index, "ADDRESS:PORT")
    return {"addr": address.strip("[]"), "port": port, **value}


def _address(listen: str, index: int, form: str) -> tuple[str, int]:
    address, _, number = listen.rpartition(":")
    if not (number.isascii() and number.isdigit()):
        raise SpecError(
            f"{listen!r} is neither 'unix' nor {form}",
            key=f"displays[{index}].listen",
            hint="the socket needs no port and no password: unix",
        )
    return address, int(number)
