"""Devices that the description of a machine has: one function for each kind.

Each returns False for a device with properties that the spec cannot say; QEMU gets it as it
is then, with all that it names.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from wirt.qemu.board import ROOT_BUSES
from wirt.qemu.legacy.draft import Card, Draft, Drive, Port
from wirt.qemu.legacy.note import Refused
from wirt.qemu.legacy.options.chardevs import from_chardev, words_of
from wirt.qemu.legacy.options.drives import slot
from wirt.qemu.legacy.options.network import MODELS, identifier, mac, nic_model
from wirt.qemu.legacy.options.nodes import resolve
from wirt.spec.console import Channel, Console, Null, UnixSocket, Video
from wirt.spec.hardware import SoundCard, UsbDevice
from wirt.units import MIB

Parts = dict[str, str]
Handler = Callable[[Draft, Parts, int], bool]

_STEP = 1000
"""Distance of the boot indexes that the compiler gives by kind."""


def keep_what_it_names(draft: Draft, parts: Parts) -> None:
    """A device goes to QEMU as it is: so must the drive and character device it names."""
    name = parts.get("chardev", "")
    if name in draft.chardevs:
        values = draft.chardevs.pop(name)
        said = [(key, text) for key, text in values if key not in {"id", "mux"}]
        backend = from_chardev(values)
        words = words_of(backend) if said else "null"
        draft.args += ["-chardev", f"{words},id={name}"]
    drive = draft.find_drive(parts.get("drive", ""))
    if drive is not None:
        drive.shown = True
        drive.settings["as_words"] = True


def _take(parts: Parts, *names: str) -> dict[str, str]:
    return {name: parts.pop(name) for name in names if name in parts}


def _place(parts: Parts) -> str | None:
    """Return the address on the root bus, empty if behind a port of wirt's, else None."""
    bus, address = parts.pop("bus", ""), parts.pop("addr", "")
    parts.pop("multifunction", "")
    if re.fullmatch(r"port\d{1,2}", bus) and address == "0x0":
        return ""
    if bus and bus not in ROOT_BUSES:
        return None
    return slot(address) if address else ""


def card(draft: Draft, parts: Parts, _position: int) -> bool:
    """A network card."""
    model = nic_model(parts.pop("driver"))
    rom = parts.pop("romfile", "")
    said = _take(parts, "id", "netdev", "mac", "bootindex", "vlan", "vectors")
    if model == "usb":
        parts.pop("port", "")
        in_place: str | None = "" if parts.pop("bus", "usb.0") in _USB else None
    else:
        in_place = _place(parts)
    netdev = said.get("netdev", "")
    if parts or rom or in_place is None or _is_foreign(draft, netdev):
        return False
    if netdev and any(other.netdev == netdev for other in draft.cards):
        raise Refused(
            f"two cards at the network {netdev}: a network has one card, then as now",
            "give each card a -netdev of its own",
        )
    draft.cards.append(
        Card(
            model, mac(said.get("mac", "")), identifier(said.get("id", "")),
            vlan=int(said["vlan"]) if said.get("vlan", "").isdigit() else None,
            netdev=netdev, address=in_place, gives_mac=False,
            boot_index=_boot(draft, said.get("bootindex"), "network"),
        )
    )  # fmt: skip
    return True


def _is_foreign(draft: Draft, netdev: str) -> bool:
    """True for a network that only QEMU's own words can say: its card goes with it."""
    return any(wire.id == netdev and wire.backend is None for wire in draft.wires)


def _boot(draft: Draft, text: str | None, kind: str) -> int | None:
    """Return an explicit boot index; one that was given by kind tells the order."""
    if text is None or not text.isdigit():
        return None
    index = int(text)
    if index >= _STEP:
        draft.boot_places[index // _STEP - 1] = kind
        return None
    return max(0, index - bool(draft.boot.get("kernel")))


_DISKS = {
    "virtio-blk-pci": ("virtio", "disk"),
    "ide-hd": ("ide", "disk"), "ide-cd": ("ide", "cdrom"), "ide-drive": ("ide", ""),
    "scsi-hd": ("scsi", "disk"), "scsi-cd": ("scsi", "cdrom"), "scsi-disk": ("scsi", ""),
    "usb-storage": ("usb", "disk"), "floppy": ("floppy", "disk"), "sd-card": ("sd", "disk"),
}  # fmt: skip
_USB = {"usb.0", "usb-bus.0", ""}


def disk(draft: Draft, parts: Parts, position: int) -> bool:
    """A disk, CD or floppy."""
    bus, media = _DISKS[parts["driver"]]
    said = _take(parts, "driver", "id", "drive", "bootindex", "serial", "device_id", "write-cache",
                 "werror", "rerror")  # fmt: skip
    place = _disk_place(draft, bus, parts)
    geometry = _geometry(parts)
    parts.pop("ver", "")
    if parts or place is None:
        return False
    name = said.get("drive", "")
    old = draft.find_drive(name) if name else None
    drive = old or (resolve(draft, name) if name else Drive("", position=position))
    if drive is None:
        return False
    if old is not None and old.shown:
        raise Refused(f"the drive {name} is shown by two devices", "a -drive for each")
    if old is None:
        draft.drives.append(drive)
    drive.shown = True
    drive.media = media or drive.media
    drive.id = identifier(said.get("id", ""))
    drive.interface, drive.bus, drive.unit = place
    if drive.interface == "virtio" and parts_address(place):
        drive.settings["address"] = parts_address(place)
        drive.bus = None
    drive.boot_index = _boot(draft, said.get("bootindex"), _kind(drive))
    drive.settings.update(geometry)
    _details(drive, said)
    return True


def parts_address(place: tuple[str, Any, Any]) -> str:
    """Return the PCI address in a place, if it is one."""
    return place[1] if isinstance(place[1], str) else ""


def _kind(drive: Drive) -> str:
    if drive.interface == "floppy":
        return "floppy"
    return "cdrom" if drive.media == "cdrom" else "disk"


def _details(drive: Drive, said: Parts) -> None:
    if said.get("serial"):
        drive.settings["serial"] = said["serial"]
    for key, setting in (("werror", "on_write_error"), ("rerror", "on_read_error")):
        if said.get(key, "auto") != "auto":
            drive.settings[setting] = said[key]
    cache = drive.settings.get("cache", "writeback")
    if said.get("write-cache") == "off" and drive.media != "cdrom":
        through = {"writeback": "writethrough", "none": "directsync"}
        drive.settings["cache"] = through.get(cache, cache)


def _geometry(parts: Parts) -> dict[str, Any]:
    found = _take(parts, "cyls", "heads", "secs")
    translation = parts.pop("bios-chs-trans", "auto")
    if set(found) != {"cyls", "heads", "secs"} or not all(t.isdigit() for t in found.values()):
        return {}
    numbers = [int(found[key]) for key in ("cyls", "heads", "secs")]
    return {
        "geometry": {
            "cylinders": numbers[0], "heads": numbers[1], "sectors": numbers[2],
            "translation": translation,
        }
    }  # fmt: skip


def _disk_place(
    draft: Draft, bus: str, parts: Parts
) -> tuple[str, int | None, int | None] | tuple[str, Any, None] | None:
    name, unit = parts.pop("bus", ""), parts.pop("unit", "")
    number = int(unit) if unit.isdigit() else None
    match bus:
        case "virtio":
            parts["bus"] = name
            address = _place(parts)
            return None if address is None else ("virtio", address or None, None)
        case "ide":
            return _ide_place(draft, name, number)
        case "scsi":
            return _scsi_place(draft, name, parts)
        case "usb":
            parts.pop("port", "")
            return ("usb", None, None) if name in _USB else None
        case "floppy":
            return ("floppy", None, number) if name in _FLOPPY_BUSES else None
        case _:
            return ("sd", None, None) if name in {"sd-bus", ""} else None


_FLOPPY_BUSES = {"", "floppy.0", "floppy-bus.0"}


def _ide_place(
    draft: Draft, bus: str, unit: int | None
) -> tuple[str, int | None, int | None] | None:
    if not bus:
        return "ide", None, None
    match = re.fullmatch(r"(ide|ahci)\.(\d)", bus)
    if not match:
        return None
    is_pcie = "q35" in draft.settings.get("machine_type", "")
    if match[1] == "ahci" or is_pcie:
        return "sata", int(match[2]), None
    return "ide", int(match[2]), unit or 0


def _scsi_place(draft: Draft, bus: str, parts: Parts) -> tuple[str, int | None, int | None] | None:
    target = parts.pop("scsi-id", "")
    other = [parts.pop(key, "0") for key in ("channel", "lun")]
    usb = re.fullmatch(r"(.+)-usb\.0", bus)
    if usb and f"{usb[1]}-usb" in draft.ports:
        return "usb", None, None
    match = re.fullmatch(r"scsi(\d?)\.0", bus)
    if other != ["0", "0"] or (bus and not match):
        return None
    if match and f"scsi{match[1]}" not in draft.ports:
        return None
    number = int(match[1] or 0) if match else 0
    return "scsi", number, int(target) if target.isdigit() else None


def floppy_controller(draft: Draft, parts: Parts, position: int) -> bool:
    """The controller of newer boards: its boot indexes are those of its drives."""
    for drive in ("A", "B"):
        index = parts.get(f"bootindex{drive}", "")
        if index.isdigit():
            draft.floppy_boot[drive] = int(index)
    return own("floppy")(draft, parts, position)


def own(*names: str) -> Handler:
    """Return a handler for a device with an id of wirt's own: the description implies it."""

    def handle(draft: Draft, parts: Parts, _position: int) -> bool:
        name = parts.get("id", "")
        if not any(re.fullmatch(pattern, name) for pattern in names):
            return False
        draft.ports[name] = parts
        return True

    return handle


def switch(setting: str, *names: str, plain: bool = False) -> Handler:
    """Return a handler for a device that is a yes or no of the description."""

    def handle(draft: Draft, parts: Parts, _position: int) -> bool:
        if parts.get("id", "") not in names and not (plain and len(parts) == 1):
            return False
        draft.settings[setting] = True
        return True

    return handle


def scsi_controller(draft: Draft, parts: Parts, position: int) -> bool:
    """The controller, if it is the one that the description would make."""
    if not own(r"scsi\d?")(draft, parts, position) or parts.get("bus") not in ROOT_BUSES:
        draft.ports.pop(parts.get("id", ""), None)
        return False
    if parts["driver"] == "lsi53c895a":
        draft.settings["scsi_controller"] = "lsi53c895a"
    return True


def serial(draft: Draft, parts: Parts, _position: int) -> bool:
    """A serial or parallel port."""
    driver = parts.pop("driver")
    said = _take(parts, "id", "index", "chardev")
    if parts or said.get("chardev") not in draft.chardevs:
        return False
    name = said["chardev"]
    values = draft.chardevs.pop(name)
    port = Port(None, mux=("mux", "on") in values.pairs)
    port.backend = own_backend(draft, from_chardev(values), said.get("id", ""))
    ports = draft.serials if driver == "isa-serial" else draft.parallels
    ports.append(port)
    if driver == "isa-serial":
        draft.serial_names[name] = len(ports) - 1
    return True


def own_backend(draft: Draft, backend: Any, name: str) -> Any:
    """Return a backend with the paths of wirt's own places as the description has them."""
    if isinstance(backend, UnixSocket):
        if draft.facts.is_socket(backend.path, name):
            return Console()
        return UnixSocket(draft.facts.own_path(backend.path), backend.server, backend.wait)
    if hasattr(backend, "path"):
        return type(backend)(draft.facts.own_path(backend.path))
    return backend


def channel(draft: Draft, parts: Parts, _position: int) -> bool:
    """A virtio-serial port on the controller that the description would make."""
    if parts.get("bus") != "channels.0" or "channels" not in draft.ports:
        return False
    said = _take(parts, "driver", "id", "bus", "nr", "chardev", "name")
    values = draft.chardevs.get(said.get("chardev", ""))
    if parts or values is None:
        return False
    backend = from_chardev(values)
    if not isinstance(backend, UnixSocket | Null):
        return False
    name = said.get("name", "")
    if isinstance(backend, UnixSocket):
        path = "" if draft.facts.is_socket(backend.path, name) else backend.path
        backend = UnixSocket(draft.facts.own_path(path), backend.server, backend.wait)
    del draft.chardevs[said["chardev"]]
    numbered = said.get("id") == f"channel{len(draft.channels) + 1}"
    draft.channels.append(Channel(name, "" if numbered else said.get("id", ""), backend))
    return True


_CARDS = {
    "VGA": "std", "virtio-vga": "virtio", "cirrus-vga": "cirrus", "vmware-svga": "vmware",
    "qxl-vga": "qxl", "isa-vga": "std", "isa-cirrus-vga": "cirrus",
}  # fmt: skip


def video(draft: Draft, parts: Parts, _position: int) -> bool:
    """The graphics card."""
    said = _take(parts, "driver", "id", "vgamem_mb")
    if _place(parts) is None or parts or draft.settings.get("video"):
        return False
    memory = int(said.get("vgamem_mb", "0")) * MIB
    draft.settings["video"] = Video(_CARDS[said["driver"]], memory)  # type: ignore[arg-type]
    return True


_USB_DEVICES = {
    "usb-tablet": "tablet", "usb-mouse": "mouse", "usb-kbd": "keyboard", "usb-host": "host",
    "usb-wacom-tablet": "wacom-tablet", "usb-braille": "braille", "usb-ccid": "ccid",
    "usb-audio": "audio",
}  # fmt: skip


def usb_device(draft: Draft, parts: Parts, _position: int) -> bool:
    """A USB device on the controller that the description has."""
    said = _take(parts, "driver", "id", "bus", "port", "audiodev", "chardev", "vendorid",
                 "productid", "hostbus", "hostaddr")  # fmt: skip
    mine = "usb" in draft.ports or (draft.has_usb and said.get("bus", "") in _USB)
    if parts or not mine or said.get("bus", "usb.0") not in _USB:
        return False
    if said["driver"] == "usb-audio" and said.get("id", "").startswith("sound"):
        draft.sound.append("usb")
        return True
    if said["driver"] == "usb-braille":
        draft.chardevs.pop(said.get("chardev", ""), None)
    draft.usb.append(
        UsbDevice(
            _USB_DEVICES[said["driver"]],  # type: ignore[arg-type]
            _hex(said.get("vendorid", "")), _hex(said.get("productid", "")),
            _small(said.get("hostbus", "")), _small(said.get("hostaddr", "")),
        )
    )  # fmt: skip
    return True


def _hex(text: str) -> str:
    return f"{int(text, 0) & 0xFFFF:04x}" if re.fullmatch(r"(?i)\d+|0x[0-9a-f]+", text) else ""


def _small(text: str) -> int:
    return int(text) & 0xFF if text.isdigit() else 0


def usb_controller(draft: Draft, parts: Parts, _position: int) -> bool:
    """The controller, if it is the one that the description would make."""
    kinds = {"qemu-xhci": "xhci", "usb-ehci": "ehci", "piix3-usb-uhci": "uhci"}
    if parts.get("id") != "usb" or parts.get("bus") not in ROOT_BUSES:
        return False
    draft.ports["usb"] = parts
    draft.settings["usb_controller"] = kinds[parts["driver"]]
    return True


_SOUND: dict[str, SoundCard] = {
    "AC97": "ac97", "ES1370": "es1370", "sb16": "sb16", "adlib": "adlib", "gus": "gus",
    "cs4231a": "cs4231a", "intel-hda": "hda", "virtio-sound-pci": "virtio",
}  # fmt: skip


def sound(draft: Draft, parts: Parts, _position: int) -> bool:
    """A sound card."""
    said = _take(parts, "driver", "id", "audiodev")
    if _place(parts) is None or parts or said.get("audiodev", "audio0") != "audio0":
        return False
    if said["driver"] == "intel-hda" and not re.fullmatch(r"sound\d+", said.get("id", "")):
        return False
    draft.sound.append(_SOUND[said["driver"]])
    return True


def watchdog(draft: Draft, parts: Parts, _position: int) -> bool:
    """A watchdog."""
    said = _take(parts, "driver", "id")
    if _place(parts) is None or parts:
        return False
    draft.watchdog["model"] = said["driver"]
    return True


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(_DISKS, disk),
    **{model: card for model in MODELS if model not in {"virtio", "usb"}},
    "virtio-net-pci": card,
    "usb-net": card,
    "isa-serial": serial,
    "isa-parallel": serial,
    "virtserialport": channel,
    "virtio-serial-pci": own("channels"),
    **dict.fromkeys(_CARDS, video),
    **dict.fromkeys(_USB_DEVICES, usb_device),
    "qemu-xhci": usb_controller,
    "usb-ehci": usb_controller,
    "piix3-usb-uhci": usb_controller,
    **dict.fromkeys(_SOUND, sound),
    "hda-duplex": own(r"sound\d+-codec"),
    "virtio-rng-pci": switch("rng", "rng"),
    "virtio-balloon-pci": switch("balloon", "balloon", plain=True),
    "vmgenid": switch("vmgenid", "vmgenid"),
    "pvpanic": switch("panic_notifier", "pvpanic", plain=True),
    "i6300esb": watchdog,
    "ib700": watchdog,
    "pcie-root-port": own(r"port\d{1,2}"),
    "virtio-scsi-pci": scsi_controller,
    "lsi53c895a": scsi_controller,
    "ich9-ahci": own("ahci"),
    "sdhci-pci": own("sdhci"),
    "usb-bot": own(r".+-usb"),
    "isa-fdc": floppy_controller,
}
