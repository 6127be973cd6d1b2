"""Sound cards. Unless the machine says where, what they play is thrown away."""

from __future__ import annotations

from wirt.qapi.value import Argument, QapiObject, device
from wirt.qemu.board import Board
from wirt.spec.hardware import SoundCard
from wirt.spec.machine import Machine

AUDIO = "audio0"
"""The audio backend that all cards share."""

_CARDS = {
    "ac97": "AC97",
    "es1370": "ES1370",
    "sb16": "sb16",
    "adlib": "adlib",
    "gus": "gus",
    "cs4231a": "cs4231a",
    "virtio": "virtio-sound-pci",
    "usb": "usb-audio",
}
_ISA = {"sb16", "adlib", "gus", "cs4231a"}


def needs_audio(machine: Machine) -> bool:
    """True if a device wants somewhere to play."""
    return bool(machine.sound) or any(d.kind == "audio" for d in machine.usb.devices)


def audio_backend(machine: Machine) -> list[Argument]:
    """Return the audio backend: it must come before the devices that play on it."""
    if not needs_audio(machine):
        return []
    return [Argument("-audiodev", {"driver": machine.audio, "id": AUDIO})]


def sound(machine: Machine, board: Board) -> list[Argument]:
    """Return the sound cards."""
    made: list[Argument] = []
    for index, card in enumerate(machine.sound):
        if card != "pcspk":  # the speaker is the board's: -machine pcspk-audiodev
            made += _card(card, f"sound{index}", board)
    return made


def _card(card: SoundCard, name: str, board: Board) -> list[Argument]:
    if card == "hda":
        codec: QapiObject = {"driver": "hda-duplex", "id": f"{name}-codec", "bus": f"{name}.0"}
        return [
            device({"driver": "intel-hda", "id": name, **board.slot("other")}),
            device({**codec, "cad": 0, "audiodev": AUDIO}),
        ]
    value: QapiObject = {"driver": _CARDS[card], "id": name, "audiodev": AUDIO}
    if card == "usb":
        value.update(board.usb(full_speed=True))
    elif card not in _ISA:
        value.update(board.slot("other"))
    return [device(value)]
