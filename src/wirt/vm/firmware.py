"""UEFI firmware of the host: where it lies, and a variable store for each machine."""

from __future__ import annotations

import os

import msgspec

from wirt.errors import MissingDependency
from wirt.spec.hardware import Firmware
from wirt.store.atomic import host_error, write_file
from wirt.store.layout import VmPaths

LARGEST_VARIABLES = 64 << 20


class FirmwareFiles(msgspec.Struct, frozen=True):
    """The code that QEMU maps read-only, and the template of the variables."""

    code: str
    variables: str


# Debian's ovmf; the others are where Fedora and Arch put the same builds.
_PLAIN = (
    FirmwareFiles("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    FirmwareFiles("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    FirmwareFiles("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
)
_SECURE = (
    FirmwareFiles("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"),
    FirmwareFiles(
        "/usr/share/edk2/ovmf/OVMF_CODE.secboot.fd", "/usr/share/edk2/ovmf/OVMF_VARS.secboot.fd"
    ),
)


def find(firmware: Firmware) -> FirmwareFiles | None:
    """Return the files for ``firmware``; None for BIOS. Raises MissingDependency."""
    if firmware.type == "bios":
        return None
    for known in _SECURE if firmware.secure_boot else _PLAIN:
        files = FirmwareFiles(firmware.code or known.code, firmware.variables or known.variables)
        if os.path.exists(files.code) and os.path.exists(files.variables):
            return files
    raise MissingDependency("there is no UEFI firmware on this host", hint="apt install ovmf")


def ensure_variables(paths: VmPaths, template: str) -> str:
    """Give the machine a variable store of its own, once. Returns its path."""
    target = paths.uefi_variables
    if os.path.exists(target):
        return target
    try:
        with open(template, "rb") as file:
            write_file(target, file.read(LARGEST_VARIABLES))
    except OSError as error:
        raise host_error(error, template) from error
    return target
