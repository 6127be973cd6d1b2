"""The graphics card and who shows its picture."""

from __future__ import annotations

from collections.abc import Sequence

from wirt.errors import SpecError
from wirt.qapi.value import Argument, QapiObject, device
from wirt.qemu.board import Board
from wirt.qemu.runtime import Runtime
from wirt.spec.console import Display, Spice, Video, Vnc, Window
from wirt.units import MIB

_CARDS = {
    "std": "VGA",
    "virtio": "virtio-vga",
    "cirrus": "cirrus-vga",
    "vmware": "vmware-svga",
    "qxl": "qxl-vga",
}


def video(card: Video, board: Board) -> list[Argument]:
    """Return the graphics card."""
    if card.model == "none":
        return []
    value: QapiObject = {"driver": _CARDS[card.model], "id": "video", **board.video()}
    if card.memory:
        if card.model == "virtio":
            raise SpecError("virtio has no video memory of its own", key="video.memory")
        value["vgamem_mb"] = max(1, card.memory // MIB)
    return [device(value)]


def displays(wanted: Sequence[Display], runtime: Runtime) -> list[Argument]:
    """Return servers and windows; without a window nothing is drawn on the host."""
    arguments: list[Argument] = []
    windows = [display for display in wanted if isinstance(display, Window)]
    if len(windows) > 1:
        raise SpecError("there can be one window", key="displays")
    if not windows:
        arguments.append(Argument("-display", "none"))
    for index, display in enumerate(wanted):
        arguments.append(_display(display, index, runtime))
    return arguments


def _display(display: Display, index: int, runtime: Runtime) -> Argument:
    match display:
        case Vnc():
            at = f"unix:{runtime.socket(f'vnc{index}')}" if _own(display) else display.listen
            return Argument("-vnc", ",".join([at.replace(",", ",,"), *display.options]))
        case Spice():
            return Argument("-spice", _spice(display, index, runtime))
        case Window():
            words: list[str] = [display.toolkit]
            if display.full_screen and display.toolkit != "curses":
                words.append("full-screen=on")
            return Argument("-display", ",".join([*words, *display.options]))


def _own(display: Vnc | Spice) -> bool:
    return display.listen == "unix"


def _spice(display: Spice, index: int, runtime: Runtime) -> QapiObject:
    value: QapiObject = {"disable-ticketing": True}
    if _own(display):
        return {"unix": True, "addr": runtime.socket(f"spice{index}"), **value}
    address, _, port = display.listen.rpartition(":")
    if not port.isdigit():
        raise SpecError(f"{display.listen!r} is not ADDRESS:PORT", key="displays")
    return {"addr": address, "port": int(port), **value}
