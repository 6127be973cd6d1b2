"""Serial ports, virtio-serial channels and the QMP monitor."""

from __future__ import annotations

import re
from collections.abc import Sequence

from wirt.errors import SpecError
from wirt.qapi.value import Argument, QapiObject, device
from wirt.qemu.board import Board
from wirt.qemu.runtime import Runtime, unix_path
from wirt.spec.console import (
    Channel,
    CharBackend,
    Console,
    File,
    Monitor,
    Null,
    Other,
    Parallel,
    Pty,
    Serial,
    SharesSerial,
    Stdio,
    Tcp,
    UnixSocket,
    Vc,
)

_SERIAL_PORTS = 4
_PARALLEL_PORTS = 3
_CHANNELS = 30


def monitor(runtime: Runtime) -> list[Argument]:
    """Return the QMP socket by which wirt talks to QEMU."""
    return [
        Argument("-chardev", _listening("qmp", "qmp", runtime)),
        Argument("-mon", {"chardev": "qmp", "mode": "control"}),
    ]


def serials(
    ports: Sequence[Serial], watchers: Sequence[Monitor], runtime: Runtime
) -> list[Argument]:
    """Return the serial ports. Raises SpecError for more than four.

    A port whose backend a monitor shares has a multiplexer.
    """
    if len(ports) > _SERIAL_PORTS:
        raise SpecError("a PC has four serial ports", key="serials")
    backends = [*(port.backend for port in ports), *(watcher.backend for watcher in watchers)]
    if sum(isinstance(backend, Stdio) for backend in backends) > 1:
        raise SpecError("one serial port or monitor can have the terminal", key="serials")
    shared = {w.backend.port for w in watchers if isinstance(w.backend, SharesSerial)}
    arguments: list[Argument] = []
    for index, port in enumerate(ports):
        name = f"serial{index}"
        value = _backend(port.backend, f"{name}-back", name, runtime)
        if index in shared:
            value["mux"] = True
        arguments.append(Argument("-chardev", value))
        arguments.append(
            device({"driver": "isa-serial", "id": name, "index": index, "chardev": f"{name}-back"})
        )
    return arguments


def parallels(ports: Sequence[Parallel], runtime: Runtime) -> list[Argument]:
    """Return the parallel ports. Raises SpecError for more than three."""
    if len(ports) > _PARALLEL_PORTS:
        raise SpecError("a PC has three parallel ports", key="parallels")
    arguments: list[Argument] = []
    for index, port in enumerate(ports):
        name = f"parallel{index}"
        arguments.append(_chardev(port.backend, f"{name}-back", name, runtime))
        value: QapiObject = {"driver": "isa-parallel", "id": name, "index": index}
        arguments.append(device({**value, "chardev": f"{name}-back"}))
    return arguments


def monitors(wanted: Sequence[Monitor], runtime: Runtime) -> list[Argument]:
    """Return the monitors that the description has beside wirt's own."""
    arguments: list[Argument] = []
    for index, monitor in enumerate(wanted):
        if isinstance(monitor.backend, SharesSerial):
            name = f"serial{monitor.backend.port}-back"
        else:
            name = f"monitor{index}"
            arguments.append(_chardev(monitor.backend, name, name, runtime))
        arguments.append(Argument("-mon", {"chardev": name, "mode": monitor.mode}))
    return arguments


def channels(ports: Sequence[Channel], board: Board, runtime: Runtime) -> list[Argument]:
    """Return the virtio-serial controller and its ports; a chardev has its port's name."""
    if not ports:
        return []
    if len(ports) > _CHANNELS:
        raise SpecError(f"there are at most {_CHANNELS} channels", key="channels")
    controller: QapiObject = {"driver": "virtio-serial-pci", "id": "channels"}
    arguments = [device({**controller, **board.single("serial"), "max_ports": _CHANNELS + 1})]
    for number, port in enumerate(ports, start=1):
        arguments.append(_chardev(port.backend, port.name, port.name, runtime))
        arguments.append(
            device(
                {
                    "driver": "virtserialport",
                    "id": port.id or f"channel{number}",
                    "bus": "channels.0",
                    "nr": number,
                    "chardev": port.name,
                    "name": port.name,
                }
            )
        )
    return arguments


def _chardev(backend: CharBackend, name: str, socket: str, runtime: Runtime) -> Argument:
    return Argument("-chardev", _backend(backend, name, socket, runtime))


def _backend(backend: CharBackend, name: str, socket: str, runtime: Runtime) -> QapiObject:
    match backend:
        case Console():
            return _listening(name, socket, runtime)
        case UnixSocket() if backend == UnixSocket():
            return _listening(name, socket, runtime)
        case UnixSocket():
            path = runtime.path(backend.path) if backend.path else runtime.socket(socket)
            return _socket(name, path, server=backend.server, wait=backend.wait)
        case Tcp():
            return _tcp(backend, name)
        case File():
            return {"backend": "file", "id": name, "path": runtime.path(backend.path)}
        case Stdio():
            return {"backend": "stdio", "id": name, "signal": backend.signals}
        case Pty():
            return {"backend": "pty", "id": name}
        case Null():
            return {"backend": "null", "id": name}
        case Vc():
            return {"backend": "vc", "id": name, **_page_size(backend)}
        case Other():
            return {**parse_other(backend), "id": name}


def _page_size(vc: Vc) -> QapiObject:
    if not vc.size:
        return {}
    match = re.fullmatch(r"(\d{1,5})(C?)x(\d{1,5})(C?)", vc.size)
    if not match:
        raise SpecError(f"{vc.size!r} is not a size of a page", hint="like 80Cx24C or 640x480")
    across = "cols" if match[2] else "width"
    down = "rows" if match[4] else "height"
    return {across: int(match[1]), down: int(match[3])}


def parse_other(other: Other) -> QapiObject:
    """Return the words of a character device; ``id`` is wirt's. Raises SpecError."""
    backend, *options = re.split(r"(?<!,),(?!,)", other.options)
    value: QapiObject = {"backend": backend}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or key in {"id", "backend"}:
            raise SpecError(f"{option!r} is not KEY=VALUE", hint="as QEMU's -chardev, without id")
        value[key] = text.replace(",,", ",")
    return value


def _listening(name: str, socket: str, runtime: Runtime) -> QapiObject:
    """A socket of wirt's: QEMU binds it, or takes one that listens already."""
    if socket not in runtime.socket_fds:
        return _socket(name, runtime.socket(socket))
    fd = str(runtime.socket_fds[socket])
    return {"backend": "socket", "id": name, "fd": fd, "server": True, "wait": False}


def _socket(name: str, path: str, *, server: bool = True, wait: bool = False) -> QapiObject:
    value: QapiObject = {"backend": "socket", "id": name, "path": unix_path(path)}
    value["server"] = server
    return {**value, "wait": wait} if server else value


def _tcp(backend: Tcp, name: str) -> QapiObject:
    value: QapiObject = {
        "backend": "socket",
        "id": name,
        "host": backend.host,
        "port": str(backend.port),
        "server": backend.server,
        "telnet": backend.telnet,
    }
    return {**value, "wait": backend.wait} if backend.server else value
