"""What must hold for a whole command line: names are unique, and this QEMU knows it all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from wirt.errors import MissingDependency, SpecError, WirtError
from wirt.qapi.capabilities import Capabilities
from wirt.qapi.value import Argument

_PACKAGES = {
    "isa-cirrus-vga": "qemu-system-x86",
    "qxl-vga": "qemu-system-modules-spice (Debian 12: qemu-system-common)",
    "usb-ccid": "qemu-system-common",
    "usb-host": "qemu-system-common",
    "virtio-vga": "qemu-system-common",
}
_SINCE = {"virtio-sound-pci": "8.2"}
_KINDS = {
    "-device": "devices",
    "-object": "objects",
    "-netdev": "network backends",
    "-chardev": "character devices",
    "-blockdev": "block nodes",
}


def check(made: Sequence[Argument], capabilities: Capabilities) -> None:
    """Refuse what QEMU would refuse, in words that name a remedy.

    Raises SpecError for names, sockets and boot indexes that are used twice, and
    MissingDependency for what this QEMU lacks.
    """
    _refuse_twice(_names(made), "the name {} is used by two {}", "give one of them another id")
    _refuse_twice(_sockets(made), "two devices want the socket {}{}", "rename the channel")
    _refuse_twice(_boot_indexes(made), "boot_index {} is used twice{}", "")
    for argument in made:
        problem = _problem(argument, capabilities)
        if problem:
            raise problem


def _refuse_twice(found: Iterator[tuple[str, str]], message: str, hint: str) -> None:
    seen: set[tuple[str, str]] = set()
    for kind, name in found:
        if (kind, name) in seen:
            raise SpecError(message.format(repr(name), _KINDS.get(kind, "")), hint=hint)
        seen.add((kind, name))


def _names(made: Sequence[Argument]) -> Iterator[tuple[str, str]]:
    for argument in made:
        if argument.option in _KINDS and isinstance(argument.value, dict):
            name = argument.value.get("node-name", argument.value.get("id"))
            yield argument.option, str(name)


def _sockets(made: Sequence[Argument]) -> Iterator[tuple[str, str]]:
    for argument in made:
        value = argument.value
        if argument.option == "-chardev" and isinstance(value, dict) and value.get("server"):
            at = value.get("path") or value.get("fd") or (value.get("host"), value.get("port"))
            yield "", str(at)


def _boot_indexes(made: Sequence[Argument]) -> Iterator[tuple[str, str]]:
    for argument in made:
        if isinstance(argument.value, dict) and argument.option == "-device":
            for key, value in argument.value.items():
                if key.startswith("bootindex"):
                    yield "", str(value)


def _problem(argument: Argument, capabilities: Capabilities) -> WirtError | None:
    value = argument.value
    if not isinstance(value, dict):
        return None
    match argument.option:
        case "-device" if not capabilities.has_device(str(value["driver"])):
            return _missing_device(str(value["driver"]), capabilities)
        case "-blockdev" if not capabilities.accepts("blockdev-add", str(value["driver"])):
            return SpecError(
                f"this QEMU has no driver for {value['driver']} images",
                key="disks",
                hint="convert it: wirt img convert OLD NEW.qcow2",
            )
        case "-netdev" if not capabilities.accepts("netdev_add", str(value["type"])):
            return MissingDependency(
                f"{_name(capabilities)} has no {value['type']} network",
                hint="use a QEMU that was built with it, like the distribution's",
            )
        case "-chardev" if not capabilities.accepts("chardev-add", str(value["backend"])):
            return MissingDependency(
                f"{_name(capabilities)} has no {value['backend']} character device",
                hint="apt install qemu-system-common",
            )
        case "-object" if not capabilities.accepts("object-add", str(value["qom-type"])):
            return MissingDependency(
                f"{_name(capabilities)} has no {value['qom-type']}",
                hint="use a QEMU that was built with it, like the distribution's",
            )
    return None


def _name(capabilities: Capabilities) -> str:
    return f"this QEMU ({'.'.join(map(str, capabilities.version))})"


def _missing_device(driver: str, capabilities: Capabilities) -> MissingDependency:
    since = _SINCE.get(driver)
    hint = f"it came with QEMU {since}" if since else f"apt install {_package(driver)}"
    return MissingDependency(f"{_name(capabilities)} has no device {driver}", hint=hint)


def _package(driver: str) -> str:
    return _PACKAGES.get(driver, "qemu-system-x86 qemu-system-common")
