"""Programs and files of other packages that wirt uses."""

from __future__ import annotations

import glob
import os

import msgspec

from wirt.errors import WirtError
from wirt.host.finding import Finding, Status
from wirt.host.process import find_program
from wirt.host.qemu_probe import MODULE_DIRECTORIES, probe
from wirt.qapi.capabilities import Capabilities

OLDEST = (7, 2, 0)


class _Part(msgspec.Struct, frozen=True):
    """A program (or one of some files) and what does not work without it."""

    id: str
    what: str
    package: str
    without: str
    files: tuple[str, ...] = ()


_FIRMWARE = (
    "/usr/share/OVMF/OVMF_CODE_4M.fd",
    "/usr/share/edk2/ovmf/OVMF_CODE.fd",
    "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
)
_PARTS = (
    _Part("qemu-img", "qemu-img", "qemu-utils", "some image formats cannot be compared"),
    _Part("ovmf", "UEFI firmware", "ovmf", "no machine boots by UEFI", _FIRMWARE),
    _Part("mmdebstrap", "mmdebstrap", "mmdebstrap", "wirt build makes no Debian guests"),
    _Part("mke2fs", "mke2fs", "e2fsprogs", "wirt build makes no file systems"),
    _Part("ssh", "ssh", "openssh-client", "no wirt ssh"),
    _Part("setpriv", "setpriv", "util-linux", "QEMU cannot be confined, so it is not started"),
    _Part("swtpm", "swtpm", "swtpm", "no machine has a TPM"),
    _Part("vde", "vde_switch", "vde2", "no virtual switches"),
)


class _Module(msgspec.Struct, frozen=True):
    """A part of QEMU in a file of its own, which a package may hold back."""

    id: str
    file: str
    packages: str
    without: str


_MODULES = (
    _Module("gui", "ui-gtk", "qemu-system-gui", "no window on this host's screen"),
    _Module(
        "spice",
        "ui-spice-core",
        "qemu-system-modules-spice (Debian 12: qemu-system-common)",
        "no SPICE displays",
    ),
    _Module("block-extra", "block-curl", "qemu-block-extra", "QEMU opens no disks over http"),
)


def programs(binary: str, cache_dir: str) -> list[Finding]:
    """Examine QEMU and the programs beside it."""
    try:
        capabilities = probe(binary, cache_dir)
    except WirtError as error:
        found = [Finding("qemu", "QEMU", "fail", error.message, error.hint)]
    else:
        found = [judge_qemu(capabilities), *_modules()]
    return [*found, *map(_part, _PARTS)]


def judge_qemu(capabilities: Capabilities) -> Finding:
    """Say whether wirt works with this QEMU."""
    version = ".".join(map(str, capabilities.version))
    package = f" ({capabilities.package})" if capabilities.package else ""
    detail = f"{version}{package} at {capabilities.identity.path}"
    if capabilities.version < OLDEST:
        wanted = ".".join(map(str, OLDEST[:2]))
        cure = f"install QEMU {wanted} or newer: Debian 12 has it"
        return Finding("qemu", "QEMU", "fail", f"{detail}: too old", cure)
    if not capabilities.option_has("sandbox", "enable"):
        cure = "take the QEMU of your distribution"
        return Finding("qemu", "QEMU", "fail", f"{detail}: built without seccomp", cure)
    return Finding("qemu", "QEMU", "ok", detail)


def _modules() -> list[Finding]:
    """Say which modules are absent. A QEMU without module directory has all built in."""
    directories = [path for pattern in MODULE_DIRECTORIES for path in glob.glob(pattern)]
    present = {name for path in directories for name in os.listdir(path) if name.endswith(".so")}
    return [_module(module, present) for module in _MODULES] if present else []


def _module(module: _Module, present: set[str]) -> Finding:
    ident, title = f"qemu.{module.id}", f"QEMU's {module.file}"
    if f"{module.file}.so" in present:
        return Finding(ident, title, "ok", "installed")
    return Finding(ident, title, "info", module.without, f"apt install {module.packages}")


def _part(part: _Part) -> Finding:
    if part.files:
        place = next((file for file in part.files if os.path.exists(file)), "")
    else:
        place = _place(part.what)
    if place:
        return Finding(part.id, part.what, "ok", place)
    status: Status = "fail" if part.id == "setpriv" else "warn"
    return Finding(part.id, part.what, status, part.without, f"apt install {part.package}")


def _place(program: str) -> str:
    try:
        return find_program(program)
    except WirtError:
        return ""
