"""Network backends: one function for each struct of ``spec.nic.Backend``."""

from __future__ import annotations

from wirt.errors import SpecError
from wirt.qapi.value import QapiObject
from wirt.qemu.runtime import Runtime, unix_path
from wirt.spec.nic import (
    Backend,
    Dgram,
    Forward,
    Network,
    Passt,
    Socket,
    Stream,
    Switch,
    Tap,
    Unplugged,
    User,
    Vde,
)


def backend_value(backend: Backend, name: str, runtime: Runtime) -> QapiObject | None:
    """Return a backend as ``netdev_add`` takes it; None for a card without a cable."""
    match backend:
        case User():
            return _user(backend, name, runtime)
        case Tap() | Network() | Switch() | Passt():
            return _made_by_host(name, runtime)
        case Vde():
            return _vde(backend, name)
        case Socket():
            return _socket(backend, name)
        case Stream():
            return _stream(backend, name, runtime)
        case Dgram():
            return _dgram(backend, name, runtime)
        case Unplugged():
            return None


def needs_spawn(backend: Backend) -> bool:
    """True if QEMU itself starts a program for the backend, which its sandbox would kill."""
    if isinstance(backend, User):
        return bool(backend.smb) or any("-cmd:" in text for text in backend.guest_forwards)
    return False


def _made_by_host(name: str, runtime: Runtime) -> QapiObject:
    """What only the host can make (a TAP, a port of a switch) is there before QEMU starts."""
    if name not in runtime.uplinks:
        raise SpecError("nobody made what this network card is connected to", key=name)
    return {**runtime.uplinks[name], "id": name}


def _vde(vde: Vde, name: str) -> QapiObject:
    # The prefix is never left out: libvdeplug runs what follows ``cmd://``.
    value: QapiObject = {"type": "vde", "id": name, "sock": f"vde://{vde.path}"}
    if vde.port:
        value["port"] = vde.port
    if vde.group:
        value["group"] = vde.group
    if vde.mode:
        value["mode"] = vde.mode
    return value


def _socket(socket: Socket, name: str) -> QapiObject:
    value: QapiObject = {"type": "socket", "id": name}
    texts = {
        "listen": socket.listen,
        "connect": socket.connect,
        "mcast": socket.multicast,
        "udp": socket.udp,
        "localaddr": socket.local_address,
    }
    value.update({key: text for key, text in texts.items() if text})
    return value


def _stream(stream: Stream, name: str, runtime: Runtime) -> QapiObject:
    address = _address(stream.address, stream.path, runtime)
    return {"type": "stream", "id": name, "server": stream.server, "addr": address}


def _dgram(dgram: Dgram, name: str, runtime: Runtime) -> QapiObject:
    value: QapiObject = {"type": "dgram", "id": name}
    if dgram.local or dgram.local_path:
        value["local"] = _address(dgram.local, dgram.local_path, runtime)
    if dgram.remote or dgram.remote_path:
        value["remote"] = _address(dgram.remote, dgram.remote_path, runtime)
    return value


def _address(address: str, path: str, runtime: Runtime) -> QapiObject:
    if path:
        return {"type": "unix", "path": unix_path(runtime.path(path))}
    host, _, port = address.rpartition(":")
    return {"type": "inet", "host": host.strip("[]"), "port": port}


def _user(user: User, name: str, runtime: Runtime) -> QapiObject:
    value: QapiObject = {"type": "user", "id": name}
    texts = {
        "net": user.network,
        "host": user.host,
        "dns": user.dns,
        "dhcpstart": user.dhcp_start,
        "hostname": user.hostname,
        "domainname": user.domain,
        "tftp": user.tftp and runtime.path(user.tftp),
        "bootfile": user.bootfile,
        "smb": user.smb and runtime.path(user.smb),
    }
    value.update({key: text for key, text in texts.items() if text})
    if user.restrict:
        value["restrict"] = True
    if user.forwards:
        value["hostfwd"] = [{"str": forward_text(forward)} for forward in user.forwards]
    if user.guest_forwards:
        value["guestfwd"] = [{"str": text} for text in user.guest_forwards]
    return value


def forward_text(forward: Forward) -> str:
    """Return a forward as ``hostfwd`` writes it."""
    host = f"[{forward.host_address}]" if ":" in forward.host_address else forward.host_address
    ends = f"{host}:{forward.host_port}-{forward.guest_address}:{forward.guest_port}"
    return f"{forward.protocol}:{ends}"
