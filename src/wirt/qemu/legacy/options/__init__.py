"""The table of all options, one module for each noun."""

from __future__ import annotations

from wirt.qemu.legacy.option import Option
from wirt.qemu.legacy.options import (
    accelerators,
    boot,
    chardevs,
    clock,
    devices,
    display,
    drives,
    misc,
    network,
    nodes,
    processor,
    run,
    usb,
)

OPTIONS: tuple[Option, ...] = (
    *processor.OPTIONS,
    *accelerators.OPTIONS,
    *drives.OPTIONS,
    *nodes.OPTIONS,
    *boot.OPTIONS,
    *network.OPTIONS,
    *display.OPTIONS,
    *chardevs.OPTIONS,
    *usb.OPTIONS,
    *clock.OPTIONS,
    *devices.OPTIONS,
    *run.OPTIONS,
    *misc.OPTIONS,
)
BY_NAME = {option.name: option for option in OPTIONS}


def takes_value(name: str) -> bool | None:
    """True if a value follows the option; None if nobody ever knew it."""
    option = BY_NAME.get(name)
    return None if option is None else option.takes_value
