"""Serial ports, virtio-serial channels and the QMP monitor."""

from __future__ import annotations

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
    Null,
    Pty,
    Serial,
    Stdio,
    Tcp,
    UnixSocket,
)

_SERIAL_PORTS = 4
_CHANNELS = 30


def monitor(runtime: Runtime) -> list[Argument]:
    """Return the QMP socket by which wirt talks to QEMU."""
    return [
        Argument("-chardev", _listening("qmp", "qmp", runtime)),
        Argument("-mon", {"chardev": "qmp", "mode": "control"}),
    ]


def serials(ports: Sequence[Serial], runtime: Runtime) -> list[Argument]:
    """Return the serial ports. Raises SpecError for more than four."""
    if len(ports) > _SERIAL_PORTS:
        raise SpecError("a PC has four serial ports", key="serials")
    if sum(isinstance(port.backend, Stdio) for port in ports) > 1:
        raise SpecError("one serial port can have the terminal", key="serials")
    arguments: list[Argument] = []
    for index, port in enumerate(ports):
        name = f"serial{index}"
        arguments.append(_chardev(port.backend, f"{name}-back", name, runtime))
        arguments.append(
            device({"driver": "isa-serial", "id": name, "index": index, "chardev": f"{name}-back"})
        )
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
            return {"backend": "stdio", "id": name, "signal": False}
        case Pty():
            return {"backend": "pty", "id": name}
        case Null():
            return {"backend": "null", "id": name}


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
