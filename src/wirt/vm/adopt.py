"""Making a machine of wirt of a line, or of a QEMU that somebody else started."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from wirt.errors import HostError, NotFound, UsageError, WirtError
from wirt.qapi.capabilities import Capabilities
from wirt.qemu.legacy.line import program_of
from wirt.qemu.legacy.note import Note
from wirt.qemu.legacy.simplify import canonical
from wirt.spec import toml
from wirt.spec.console import (
    Console,
    Monitor,
    Null,
    Other,
    Serial,
    SharesSerial,
    Stdio,
    UnixSocket,
    Vc,
    Vnc,
    Window,
)
from wirt.spec.machine import Machine
from wirt.spec.nic import Nic, Tap
from wirt.store.atomic import write_file
from wirt.store.layout import VmPaths
from wirt.store.machines import new_machine
from wirt.store.record import Record, write_record
from wirt.vm.context import Context
from wirt.vm.description import summarise
from wirt.vm.fresh import random_mac, random_uuid
from wirt.vm.oldline import OldLine, understand
from wirt.vm.ownership import choose_uid, give

T = TypeVar("T")

_LONGEST_LINE = 1 << 20
_ASK_SECONDS = 5.0
_ANY_WINDOW = ("sdl", "gtk", "curses")
"""A window becomes VNC on the machine's own socket, whatever this host could open."""
_TERMINAL = (Stdio, Vc, Null)


class Adopted(msgspec.Struct, frozen=True):
    """The new machine, what became of each option, and what to know about it."""

    name: str
    paths: VmPaths
    notes: tuple[Note, ...]
    remarks: tuple[str, ...]


class Running(msgspec.Struct, frozen=True):
    """A QEMU of somebody else's: its line and where it was started."""

    pid: int
    words: tuple[str, ...]
    directory: str
    taps: dict[int, str]
    """Descriptor → interface."""
    uuid: str = ""
    status: str = ""


def adopt_line(context: Context, words: Sequence[str], name: str = "") -> Adopted:
    """Make a machine of a line; its disks stay where they are.

    Raises UsageError for a refused line, AlreadyExists, SpecError, HostError.
    """
    line = understand(context, words, strict=True, windows=_ANY_WINDOW)
    return _adopt(context, line, name, os.getcwd(), {}, "")


def adopt_process(context: Context, pid: int, name: str = "") -> Adopted:
    """Make a machine of a running QEMU, which runs on; its own start comes after that.

    Raises NotFound without such a process, UsageError for one that is no QEMU.
    """
    running = look_at(pid)
    with _inside(running.directory):
        line = understand(context, running.words, strict=False, windows=_ANY_WINDOW, modern=True)
    adopted = _adopt(context, line, name, running.directory, running.taps, running.uuid)
    state = f" ({running.status})" if running.status else ""
    remark = f"process {pid} runs on{state} and has the disks: wirt start works once it has ended"
    return replace(adopted, remarks=(*adopted.remarks, remark))


class _inside:  # noqa: N801 - reads as a word of a with statement
    """Paths of a line are relative to where it was started."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.before = os.getcwd()

    def __enter__(self) -> None:
        try:
            os.chdir(self.directory)
        except OSError as error:
            raise HostError(f"{self.directory}: {error.strerror}") from error

    def __exit__(self, *_error: object) -> None:
        os.chdir(self.before)


def look_at(pid: int) -> Running:
    """Return what the kernel and its monitor tell of a QEMU. Raises NotFound, UsageError."""
    words = _command_line(pid)
    program, _ = program_of(words)
    if not re.search(r"qemu|kvm", program):
        raise UsageError(
            f"process {pid} is {program[:40]!r}, no QEMU", hint="see them: pgrep -a qemu"
        )
    try:
        directory = os.readlink(f"/proc/{pid}/cwd")
    except OSError as error:
        raise HostError(
            f"you may not look at process {pid}: {error.strerror}", hint="try it as root"
        ) from error
    running = Running(pid, ("kvm", *words[1:]), directory, _taps(pid))
    return _asked(running)


def _command_line(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            data = file.read(_LONGEST_LINE)
    except OSError as error:
        raise NotFound(f"there is no process {pid}", hint="see them: pgrep -a qemu") from error
    words = [os.fsdecode(word) for word in data.split(b"\0")[:-1]]
    if not words:
        raise UsageError(f"process {pid} has no command line", hint="a thread of the kernel")
    return words


def _taps(pid: int) -> dict[int, str]:
    """Return the TAPs that the process has as descriptors."""
    found = {}
    directory = f"/proc/{pid}/fdinfo"
    try:
        numbers = os.listdir(directory)
    except OSError:
        return {}
    for number in numbers:
        try:
            with open(f"{directory}/{number}", encoding="ascii", errors="replace") as file:
                match = re.search(r"^iff:\s*(\S+)", file.read(4096), re.MULTILINE)
        except OSError:
            continue
        if match:
            found[int(number)] = match[1]
    return found


def _asked(running: Running) -> Running:
    """Ask its QMP monitor, if it listens on a unix socket and answers."""
    for path in _qmp_sockets(running.words):
        full = os.path.join(running.directory, path)
        try:
            return _answered(running, full)
        except WirtError:
            continue
    return running


class _Uuid(msgspec.Struct, frozen=True):
    UUID: str


class _Status(msgspec.Struct, frozen=True):
    status: str


def _answered(running: Running, path: str) -> Running:
    from wirt.protocols.qmp.client import QmpClient

    with QmpClient.connect(path, timeout=_ASK_SECONDS) as qmp:
        uuid = qmp.execute("query-uuid", reply=_Uuid, timeout=_ASK_SECONDS).UUID
        status = qmp.execute("query-status", reply=_Status, timeout=_ASK_SECONDS).status
    unset = not uuid.strip("0-")
    return replace(running, uuid="" if unset else uuid, status=status)


def _qmp_sockets(words: Sequence[str]) -> list[str]:
    """Return the unix sockets of the line's QMP monitors."""
    text = "\n".join(words)
    found = re.findall(r"^-qmp(?:-pretty)?\nunix:([^,\n]+)", text, re.MULTILINE)
    for name in re.findall(r"^-mon\n.*?chardev=([^,\n]+).*control", text, re.MULTILINE):
        chardev = rf"^-chardev\n(?=.*\bid={re.escape(name)}\b).*?\bpath=([^,\n]+)"
        found += re.findall(chardev, text, re.MULTILINE)
    return found


def _adopt(
    context: Context, line: OldLine, name: str, directory: str, taps: dict[int, str], uuid: str
) -> Adopted:
    translation = line.translation
    if translation.machine is None:
        raise _refusal(line)
    remarks = list(translation.warnings)
    machine = _settled(translation.machine, directory, remarks)
    machine = _with_taps(machine, line, taps, remarks)
    if translation.process:
        words = " ".join(translation.process)
        remarks.append(f"how that QEMU was run is not kept: {words}")
    machine = msgspec.structs.replace(
        machine, name=name or machine.name, uuid=machine.uuid or uuid or random_uuid()
    )
    paths = _store(context, machine, line.capabilities)
    return Adopted(machine.name, paths, translation.notes, tuple(dict.fromkeys(remarks)))


def _refusal(line: OldLine) -> UsageError:
    refused = line.translation.refused
    if not refused:
        return UsageError("this line makes no machine, it only asks QEMU something")
    first = refused[0]
    option = f"{first.option} {first.value}: ".lstrip() if first.option else ""
    return UsageError(f"{option}{first.why}", hint=first.today or "wirt explain -- kvm …")


def _settled(machine: Machine, directory: str, remarks: list[str]) -> Machine:
    """Return the machine independent of the terminal and directory of its line."""
    change = msgspec.structs.replace

    def full(path: str) -> str:
        return os.path.join(directory, path) if path else path

    serials = tuple(_kept(port) for port in machine.serials)
    displays = tuple(d for d in machine.displays if not isinstance(d, Window)) or (Vnc(),)
    monitors = tuple(
        change(m, backend=_own_socket(m.backend)) for m in machine.monitors if _has_place(m)
    )
    if displays != machine.displays:
        remarks.append("the screen: wirt screenshot, or VNC on the machine's own socket")
    return change(
        machine,
        disks=tuple(change(disk, image=full(disk.image)) for disk in machine.disks),
        boot=change(
            machine.boot, kernel=full(machine.boot.kernel), initrd=full(machine.boot.initrd)
        ),
        firmware=change(machine.firmware, code=full(machine.firmware.code)),
        serials=serials,
        displays=displays,
        monitors=monitors,
        parallels=tuple(p for p in machine.parallels if not isinstance(p.backend, _TERMINAL)),
        nics=tuple(_with_mac(nic, directory) for nic in machine.nics),
    )


def _kept(port: Serial) -> Serial:
    """A port on a terminal becomes wirt's console: wirt console, wirt logs."""
    if isinstance(port.backend, _TERMINAL):
        return Serial(Console())
    return msgspec.structs.replace(port, backend=_own_socket(port.backend))


def _own_socket(backend: T) -> T:
    """Sockets that QEMU makes are in the machine's own directory: it may not write elsewhere."""
    if isinstance(backend, UnixSocket) and backend.server:
        return msgspec.structs.replace(backend, path="")
    return backend


def _has_place(monitor: Monitor) -> bool:
    """A monitor on a terminal is not needed: wirt has one of its own."""
    return not isinstance(monitor.backend, (*_TERMINAL, SharesSerial, Other))


def _with_mac(nic: Nic, directory: str) -> Nic:
    backend = nic.backend
    for key in ("tftp", "smb"):
        path = getattr(backend, key, "")
        if path:
            full = os.path.join(directory, path)
            backend = msgspec.structs.replace(backend, **{key: full})
    return msgspec.structs.replace(nic, mac=nic.mac or random_mac(), backend=backend)


def _with_taps(
    machine: Machine, line: OldLine, taps: dict[int, str], remarks: list[str]
) -> Machine:
    """A TAP that came as a descriptor is found again by its name, if its owner runs."""
    nics = []
    for index, nic in enumerate(machine.nics):
        uplink = line.translation.uplinks.get(f"{nic.id or f'nic{index}'}-net", {})
        fd = str(uplink.get("fd", ""))
        if isinstance(nic.backend, Tap) and fd:
            interface = taps.get(int(fd), "") if fd.isdigit() else ""
            nics.append(
                msgspec.structs.replace(
                    nic, backend=msgspec.structs.replace(nic.backend, interface=interface)
                )
            )
            what = interface or "a TAP that wirt makes: connect it"
            remarks.append(f"the network that came as descriptor {fd} is {what}")
        else:
            nics.append(nic)
    return msgspec.structs.replace(machine, nics=tuple(nics))


def _store(context: Context, machine: Machine, capabilities: Capabilities) -> VmPaths:
    machine = msgspec.structs.replace(
        machine, machine_type=capabilities.resolve_machine(machine.machine_type)
    )
    machine = canonical(toml.from_data(msgspec.to_builtins(machine)))
    with new_machine(context.home, machine.name) as paths:
        write_file(paths.spec, toml.dump(machine).encode())
        record = Record(created=time.time(), uid=choose_uid(context.home))
        record = msgspec.structs.replace(record, summary=summarise(paths, machine))
        write_record(paths.record, record)
        give(paths, record)
    return context.home.vm(machine.name)
