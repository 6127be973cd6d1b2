"""What one QEMU binary can do: facts that it told once, kept by its identity."""

from __future__ import annotations

import msgspec

from wirt.errors import SpecError


class Identity(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which file was asked; a changed file is asked again. Times in nanoseconds."""

    path: str
    size: int
    mtime_ns: int
    inode: int
    modules_mtime_ns: int = 0
    """When a module of QEMU (a file of another package) was last added or removed."""


class MachineType(msgspec.Struct, frozen=True, omit_defaults=True):
    """A board, as ``query-machines`` has it."""

    name: str
    alias: str = ""
    is_default: bool = False
    deprecated: bool = False


class Capabilities(msgspec.Struct, frozen=True):
    """Everything the compiler asks about a QEMU."""

    format: int
    identity: Identity
    version: tuple[int, int, int]
    package: str
    machines: tuple[MachineType, ...]
    devices: frozenset[str]
    objects: frozenset[str]
    commands: frozenset[str]
    options: dict[str, frozenset[str]]
    """Command-line option (without dash) → names of its parameters."""
    enums: dict[str, frozenset[str]]
    """What some commands accept: ``blockdev-add`` drivers, ``netdev_add`` types …"""
    accelerators: frozenset[str] = frozenset()
    """``kvm``, ``tcg`` …: what is built in, whether or not it works on this host."""

    def has_device(self, name: str) -> bool:
        """True if ``-device NAME`` exists, its module installed."""
        return name in self.devices

    def has_command(self, name: str) -> bool:
        """True if QMP knows the command."""
        return name in self.commands

    def option_has(self, option: str, parameter: str) -> bool:
        """True if the command-line option takes the parameter."""
        return parameter in self.options.get(option, frozenset())

    def accepts(self, command: str, value: str) -> bool:
        """True if ``value`` is a driver, type or backend that ``command`` accepts."""
        return value in self.enums.get(command, frozenset())

    def resolve_machine(self, name: str) -> str:
        """Return the versioned machine type that ``name`` means now.

        Machines keep it for life: another version is other hardware to the guest. Options
        after a comma stay. Raises SpecError for a type that this QEMU does not have.
        """
        base, comma, options = name.partition(",")
        for machine in self.machines:
            if base in {machine.name, machine.alias}:
                return machine.name + comma + options
        newest = [machine.name for machine in self.machines if machine.alias]
        raise SpecError(
            f"this QEMU ({'.'.join(map(str, self.version))}) has no machine type {base!r}",
            key="machine_type",
            hint=f"it has {', '.join(sorted(newest))}, and: qemu-system-x86_64 -machine help",
        )
