"""A machine of wirt as a line that runs without wirt."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from wirt.host.accel import choose_accelerator
from wirt.host.qemu_probe import probe
from wirt.qemu.compile import arguments
from wirt.qemu.render import argv
from wirt.qemu.tpm import SOCKET
from wirt.spec.console import (
    Console,
    Monitor,
    Null,
    Serial,
    SharesSerial,
    Stdio,
    UnixSocket,
    Vnc,
)
from wirt.spec.machine import Machine
from wirt.store.layout import VmPaths
from wirt.store.machines import find
from wirt.vm.context import Context
from wirt.vm.description import load_spec
from wirt.vm.start import DEFAULT_BINARY, runtime_of


def export(context: Context, name: str, program: str) -> list[str]:
    """Return the line of the machine ``name``; its disks and paths are absolute.

    Raises NotFound, SpecError, MissingDependency.
    """
    paths = find(context.home, name)
    machine = plain(load_spec(paths))
    capabilities = probe(machine.qemu.binary or DEFAULT_BINARY, context.home.cache)
    accelerator = choose_accelerator(
        machine.accelerator, cache_dir=context.home.cache, built_in=capabilities.accelerators
    )
    if machine.tpm.version != "none":
        context.say(f"it has a TPM, which waits for each start of it: {_tpm_line(paths, machine)}")
    runtime = replace(
        runtime_of(paths, machine, accelerator), paused=False, sandbox=False, attended=True
    )
    return argv(program, arguments(machine, runtime, capabilities))


def _tpm_line(paths: VmPaths, machine: Machine) -> str:
    version = "--tpm2 " if machine.tpm.version == "2.0" else ""
    place = paths.socket(SOCKET)
    return (
        f"mkdir -p {paths.runtime} && swtpm socket {version}--tpmstate dir={paths.tpm} "
        f"--ctrl type=unixio,path={place} --terminate"
    )


def plain(machine: Machine) -> Machine:
    """Return the machine as a line without wirt can run it: no sockets of wirt's."""
    change = msgspec.structs.replace
    has_console = any(isinstance(port.backend, Console) for port in machine.serials)
    return change(
        machine,
        serials=tuple(
            _on_terminal(port, index, machine) for index, port in enumerate(machine.serials)
        ),
        monitors=(
            *machine.monitors,
            *([Monitor(SharesSerial(_first_console(machine)))] if has_console else []),
        ),
        channels=tuple(
            change(channel, backend=Null())
            if isinstance(channel.backend, UnixSocket) and not channel.backend.path
            else channel
            for channel in machine.channels
        ),
        displays=tuple(
            Vnc("127.0.0.1:0", ("to=99",))
            if isinstance(display, Vnc) and display.listen == "unix"
            else display
            for display in machine.displays
        ),
    )


def _first_console(machine: Machine) -> int:
    return next(i for i, port in enumerate(machine.serials) if isinstance(port.backend, Console))


def _on_terminal(port: Serial, index: int, machine: Machine) -> Serial:
    if not isinstance(port.backend, Console):
        return port
    return Serial(Stdio() if index == _first_console(machine) else Null())
