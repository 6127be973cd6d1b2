"""What starts the machine: SeaBIOS, another BIOS file, or UEFI in two flash chips.

UEFI code is read-only and shared; the variables are the machine's own. With Secure Boot
the variables can be written in system management mode only.
"""

from __future__ import annotations

from wirt.errors import MissingDependency, SpecError
from wirt.qapi.value import Argument, QapiObject, blockdev
from wirt.qemu import block
from wirt.qemu.runtime import Runtime
from wirt.spec.machine import Machine

_CODE, _VARIABLES = "uefi-code", "uefi-variables"


def firmware(machine: Machine, runtime: Runtime) -> list[Argument]:
    """Return the firmware. Raises MissingDependency when there is no UEFI to use."""
    wanted = machine.firmware
    if wanted.type == "bios":
        return [Argument("-bios", runtime.path(wanted.code))] if wanted.code else []
    if not runtime.firmware_code or not runtime.uefi_variables:
        raise MissingDependency("there is no UEFI firmware on this host", hint="apt install ovmf")
    made = [
        *_flash(_CODE, runtime.firmware_code, read_only=True),
        *_flash(_VARIABLES, runtime.uefi_variables, read_only=False),
    ]
    if wanted.secure_boot:
        secure: QapiObject = {"driver": "cfi.pflash01", "property": "secure", "value": True}
        made.append(Argument("-global", secure))
    return made


def _flash(name: str, path: str, *, read_only: bool) -> list[Argument]:
    file: QapiObject = {"driver": "file", "node-name": f"{name}-file", "filename": path}
    raw: QapiObject = {"driver": "raw", "node-name": name, "file": f"{name}-file"}
    return [blockdev({**node, "read-only": read_only}) for node in (file, raw)]


def flash_nodes(machine: Machine) -> QapiObject:
    """Return which nodes are the board's flash chips, as ``-machine`` takes them.

    Raises SpecError for more than two, and for disks in the chips that UEFI uses.
    """
    if machine.firmware.type == "uefi":
        chips: QapiObject = {"pflash0": _CODE, "pflash1": _VARIABLES}
    else:
        chips = {}
    for index, disk in enumerate(machine.disks):
        if disk.bus != "pflash":
            continue
        key = f"pflash{disk.unit if disk.unit is not None else len(chips)}"
        if key in chips or key not in {"pflash0", "pflash1"}:
            raise SpecError(
                "there are two flash chips, and UEFI firmware uses both", key=f"disks[{index}]"
            )
        chips[key] = block.node_name(disk, index)
    return chips
