"""The USB controller and what is plugged into it."""

from __future__ import annotations

from wirt.errors import SpecError
from wirt.qapi.value import Argument, QapiObject, device
from wirt.qemu.board import USB_PORTS, Board
from wirt.qemu.sound import AUDIO
from wirt.spec.hardware import UsbDevice
from wirt.spec.machine import Machine

_CONTROLLERS = {"xhci": "qemu-xhci", "ehci": "usb-ehci", "uhci": "piix3-usb-uhci"}
_DEVICES = {
    "tablet": "usb-tablet",
    "mouse": "usb-mouse",
    "keyboard": "usb-kbd",
    "host": "usb-host",
    "wacom-tablet": "usb-wacom-tablet",
    "braille": "usb-braille",
    "ccid": "usb-ccid",
    "audio": "usb-audio",
}
_FULL_SPEED = {"wacom-tablet", "braille", "ccid", "audio"}


def controller_kind(machine: Machine) -> str:
    """Return the controller that the machine gets: xhci where one is needed and none named."""
    return "xhci" if machine.usb.controller == "none" else machine.usb.controller


def usb(machine: Machine, board: Board) -> list[Argument]:
    """Return the USB controller, if there is one or anything needs one, and its devices."""
    if machine.usb.controller == "none" and not _is_needed(machine):
        return []
    kind = board.usb_controller
    value: QapiObject = {"driver": _CONTROLLERS[kind], "id": "usb", **board.single("usb")}
    if kind == "xhci":
        value.update({"p2": USB_PORTS[kind], "p3": USB_PORTS[kind]})
    made = [device(value)]
    for index, wanted in enumerate(machine.usb.devices):
        made += _device(wanted, index, board)
    return made


def _is_needed(machine: Machine) -> bool:
    return (
        bool(machine.usb.devices)
        or any(disk.bus == "usb" for disk in machine.disks)
        or any(nic.model == "usb" for nic in machine.nics)
        or "usb" in machine.sound
    )


def _device(wanted: UsbDevice, index: int, board: Board) -> list[Argument]:
    name = f"usb{index}"
    value: QapiObject = {"driver": _DEVICES[wanted.kind], "id": name}
    value.update(board.usb(full_speed=wanted.kind in _FULL_SPEED))
    if wanted.kind == "audio":
        value["audiodev"] = AUDIO
    if wanted.kind == "host":
        value.update(_host_device(wanted, index))
    if wanted.kind == "braille":
        value["chardev"] = f"{name}-back"
        return [Argument("-chardev", {"backend": "braille", "id": f"{name}-back"}), device(value)]
    return [device(value)]


def _host_device(wanted: UsbDevice, index: int) -> QapiObject:
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
            key=f"usb.devices[{index}]",
            hint="see them: lsusb",
        )
    return value
