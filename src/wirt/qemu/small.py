"""Small devices: entropy, balloon, generation id, watchdog, USB, sound."""

from __future__ import annotations

from wirt.errors import SpecError
from wirt.qapi.value import Argument, QapiObject, device, user_object
from wirt.qemu.board import Board
from wirt.qemu.runtime import Runtime
from wirt.spec.hardware import SoundCard, UsbDevice
from wirt.spec.machine import Machine

AUDIO = "audio0"

_USB_CONTROLLERS = {"xhci": "qemu-xhci", "ehci": "usb-ehci", "uhci": "piix3-usb-uhci"}
_USB_DEVICES = {
    "tablet": "usb-tablet",
    "mouse": "usb-mouse",
    "keyboard": "usb-kbd",
    "host": "usb-host",
    "wacom-tablet": "usb-wacom-tablet",
    "braille": "usb-braille",
    "ccid": "usb-ccid",
    "audio": "usb-audio",
}
_SOUND = {
    "ac97": "AC97",
    "es1370": "ES1370",
    "sb16": "sb16",
    "adlib": "adlib",
    "gus": "gus",
    "cs4231a": "cs4231a",
    "virtio": "virtio-sound-pci",
    "usb": "usb-audio",
}
_ISA_SOUND = {"sb16", "adlib", "gus", "cs4231a"}


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


def watchdog(machine: Machine, board: Board) -> list[Argument]:
    """Return the watchdog; its action is ``-action watchdog=``."""
    if machine.watchdog is None:
        return []
    value: QapiObject = {"driver": machine.watchdog.model, "id": "watchdog"}
    if machine.watchdog.model == "i6300esb":
        value.update(board.single("watchdog"))
    return [device(value)]


def usb(machine: Machine, board: Board) -> list[Argument]:
    """Return the USB controller, if anything needs one, and its devices."""
    on_usb = (
        any(disk.bus == "usb" for disk in machine.disks)
        or any(nic.model == "usb" for nic in machine.nics)
        or "usb" in machine.sound
    )
    kind = machine.usb.controller
    if kind == "none":
        if not machine.usb.devices and not on_usb:
            return []
        kind = "xhci"
    value: QapiObject = {"driver": _USB_CONTROLLERS[kind], "id": "usb", **board.single("usb")}
    return [
        device(value),
        *(argument for i, d in enumerate(machine.usb.devices) for argument in _usb_device(d, i)),
    ]


def _usb_device(wanted: UsbDevice, index: int) -> list[Argument]:
    name = f"usb{index}"
    value: QapiObject = {"driver": _USB_DEVICES[wanted.kind], "id": name, "bus": "usb.0"}
    if wanted.kind == "audio":
        value["audiodev"] = AUDIO
    if wanted.kind == "host":
        value.update(_host_device(wanted))
    if wanted.kind == "braille":
        value["chardev"] = f"{name}-back"
        return [Argument("-chardev", {"backend": "braille", "id": f"{name}-back"}), device(value)]
    return [device(value)]


def _host_device(wanted: UsbDevice) -> QapiObject:
    value: QapiObject = {}
    if wanted.vendor:
        value["vendorid"] = int(wanted.vendor, 16)
    if wanted.product:
        value["productid"] = int(wanted.product, 16)
    if wanted.bus:
        value["hostbus"] = wanted.bus
    if wanted.address:
        value["hostaddr"] = wanted.address
    if not value:
        raise SpecError(
            "a USB device of the host needs vendor and product, or bus and address",
            key="usb.devices",
            hint="see them: lsusb",
        )
    return value


def needs_audio(machine: Machine) -> bool:
    """True if a device wants somewhere to play."""
    return bool(machine.sound) or any(d.kind == "audio" for d in machine.usb.devices)


def sound(machine: Machine, board: Board) -> list[Argument]:
    """Return the sound cards; what they play is thrown away."""
    if not needs_audio(machine):
        return []
    arguments = [Argument("-audiodev", {"driver": "none", "id": AUDIO})]
    for index, card in enumerate(machine.sound):
        if card != "pcspk":  # the speaker is the board's: -machine pcspk-audiodev
            arguments += _sound_card(card, f"sound{index}", board)
    return arguments


def _sound_card(card: SoundCard, name: str, board: Board) -> list[Argument]:
    if card == "hda":
        codec: QapiObject = {"driver": "hda-duplex", "id": f"{name}-codec", "bus": f"{name}.0"}
        return [
            device({"driver": "intel-hda", "id": name, **board.slot()}),
            device({**codec, "audiodev": AUDIO}),
        ]
    value: QapiObject = {"driver": _SOUND[card], "id": name, "audiodev": AUDIO}
    if card == "usb":
        value["bus"] = "usb.0"
    elif card not in _ISA_SOUND:
        value.update(board.slot())
    return [device(value)]
