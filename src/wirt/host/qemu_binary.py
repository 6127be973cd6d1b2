"""Finding QEMU itself, by the names that distributions give it."""

from __future__ import annotations

from wirt.errors import MissingDependency
from wirt.host.process import find_program

_NAMES = ("qemu-system-x86_64", "qemu-kvm", "/usr/libexec/qemu-kvm")


def find_qemu() -> str:
    """Return the path of QEMU. Raises MissingDependency."""
    for name in _NAMES:
        try:
            return find_program(name)
        except MissingDependency:
            continue
    raise MissingDependency("there is no QEMU on this host", hint="apt install qemu-system-x86")
