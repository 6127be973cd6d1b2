"""USB: the controller and ``-usbdevice`` in all its forms."""

from __future__ import annotations

import re

from wirt.qemu.legacy.draft import Card, Draft, Drive
from wirt.qemu.legacy.line import Given
from wirt.qemu.legacy.note import Outcome, Refused
from wirt.qemu.legacy.option import flag, valued
from wirt.qemu.legacy.options.chardevs import backend_of, words_of
from wirt.qemu.legacy.options.drives import check_file
from wirt.qemu.legacy.options.network import mac
from wirt.qemu.legacy.values import number, parse
from wirt.spec.hardware import UsbDevice

_PLAIN = {"tablet", "mouse", "keyboard", "wacom-tablet", "braille", "ccid", "audio"}


def usb(draft: Draft, _given: Given) -> Outcome | None:
    """The controller."""
    draft.has_usb = True
    return Outcome("same", today="-device piix3-usb-uhci")


def usb_device(draft: Draft, given: Given) -> Outcome | None:
    """A device."""
    kind, _, rest = given.value.partition(":")
    draft.has_usb = True
    if kind in _PLAIN:
        draft.usb.append(UsbDevice(kind))  # type: ignore[arg-type]
        return Outcome("same", today=f"-device usb-{'kbd' if kind == 'keyboard' else kind}")
    match kind:
        case "host":
            return _host(draft, rest)
        case "disk":
            return _disk(draft, rest, given.position)
        case "serial":
            return _serial(draft, rest)
        case "net":
            return _net(draft, rest)
        case "bt":
            raise Refused("QEMU's Bluetooth was taken out in 3.1", "-device usb-host")
    raise Refused(f"there is no USB device {given.value[:40]!r}", ", ".join(sorted(_PLAIN)))


def _host(draft: Draft, text: str) -> Outcome | None:
    """``BUS.ADDRESS``, ``VENDOR:PRODUCT`` or, with ``auto:``, patterns of these."""
    if text.startswith("auto:"):
        raise Refused(
            "auto: took whatever was plugged in", "name it: -usbdevice host:VENDOR:PRODUCT"
        )
    place = re.fullmatch(r"(\d{1,3})\.(\d{1,3})", text)
    names = re.fullmatch(r"(?:0x)?([0-9a-fA-F]{1,4}):(?:0x)?([0-9a-fA-F]{1,4}|\*)", text)
    if place:
        bus, address = (number(part, "host:", 0, 255) for part in place.groups())
        draft.need(f"/dev/bus/usb/{bus:03}/{address:03}", "the USB device")
        draft.usb.append(UsbDevice("host", bus=bus, address=address))
    elif names:
        product = "" if names[2] == "*" else names[2]
        draft.usb.append(UsbDevice("host", vendor=names[1], product=product))
    else:
        raise Refused(f"host:{text[:40]}", "host:BUS.ADDRESS or host:VENDOR:PRODUCT, see lsusb")
    return Outcome(today="-device usb-host")


def _disk(draft: Draft, text: str, position: int) -> Outcome | None:
    """``[format=FORMAT:]FILE``; the documentation also wrote ``disk::FILE``."""
    image_format = ""
    if text.startswith("format="):
        image_format, _, text = text.removeprefix("format=").partition(":")
    text = text.removeprefix(":")
    check_file(draft, text)
    draft.drives.append(Drive(text, "usb", "disk", image_format, position=position))
    return Outcome(today="-blockdev and -device usb-storage")


def _serial(draft: Draft, text: str) -> Outcome | None:
    """``[vendorid=…,productid=…]:DEVICE``; what the adapter calls itself is fixed now."""
    options, colon, device = text.partition(":")
    if not colon or (options and "id=" not in options):
        device = text
    backend, _ = backend_of(device)
    if backend is None:
        return Outcome("dropped", why="an adapter that nothing is connected to")
    name = draft.fresh("usbserial")
    draft.args += ["-chardev", f"{words_of(backend)},id={name}"]
    draft.args += ["-device", f"usb-serial,bus=usb.0,chardev={name}"]
    return Outcome(today="-device usb-serial,chardev=")


def _net(draft: Draft, text: str) -> Outcome | None:
    """``vlan=…,macaddr=…``."""
    values = parse(text)
    vlan = number(values.take("vlan", default="0"), "vlan", 0, (1 << 31) - 1)
    draft.networked = True
    draft.cards.append(Card("usb", mac(values.take("macaddr", "mac")), vlan=vlan))
    return Outcome(today="-device usb-net,netdev=")


OPTIONS = (
    flag("usb", "0.8", "", "a USB controller", usb),
    valued("usbdevice", "0.8", "", "a USB device", usb_device, "-device usb-…"),
)
