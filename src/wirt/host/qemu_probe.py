"""Asking a QEMU binary what it can do, once for each version of the file."""

from __future__ import annotations

import os
import socket
import subprocess
import zlib
from typing import Any

import msgspec

from wirt.errors import MissingDependency, WirtError
from wirt.host.process import find_program, mortal, spawn
from wirt.protocols.qmp.client import QmpClient
from wirt.protocols.qmp.messages import CommandInfo, MachineInfo
from wirt.qapi.capabilities import Capabilities, Identity, MachineType

FORMAT = 1
"""Of the cached record: raised when its meaning changes."""
_SECONDS = 60.0
_ENUMS = {
    "blockdev-add": "driver",
    "netdev_add": "type",
    "object-add": "qom-type",
}
_CHARDEV = "chardev-add"


def probe(binary: str, cache_dir: str) -> Capabilities:
    """Return what ``binary`` can do, from the cache if the file is the same.

    Raises MissingDependency when it is absent, QemuError or ProtocolError when it is broken.
    """
    path = os.path.realpath(find_program(binary))
    identity = _identity(path)
    cached = os.path.join(cache_dir, f"qemu-{zlib.crc32(path.encode()):08x}.json")
    known = _read(cached)
    if known is not None and known.identity == identity:
        return known
    fresh = ask(path, identity)
    _write(cached, fresh)
    return fresh


def _identity(path: str) -> Identity:
    info = os.stat(path)
    return Identity(path, info.st_size, info.st_mtime_ns, info.st_ino)


def _read(path: str) -> Capabilities | None:
    try:
        with open(path, "rb") as file:
            known = msgspec.json.decode(file.read(8 << 20), type=Capabilities)
    except (OSError, msgspec.MsgspecError):
        return None  # absent or damaged: it is a cache
    return known if known.format == FORMAT else None


def _write(path: str, capabilities: Capabilities) -> None:
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(msgspec.json.encode(capabilities))
        os.rename(temporary, path)
    except OSError:
        return  # a cache that cannot be written costs time only


def ask(path: str, identity: Identity) -> Capabilities:
    """Start ``path`` without a machine and ask it."""
    ours, theirs = socket.socketpair()
    argv = [
        path, "-M", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S",
        "-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control",
    ]  # fmt: skip
    try:
        process = spawn(
            mortal(argv),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
    finally:
        theirs.close()
    try:
        with QmpClient.from_socket(ours, timeout=_SECONDS) as qmp:
            return _collect(qmp, identity)
    except WirtError as error:
        raise MissingDependency(
            f"{path} does not work as QEMU: {error}", hint=f"see what it says: {path} --version"
        ) from error
    finally:
        process.kill()
        process.wait()


def _collect(qmp: QmpClient, identity: Identity) -> Capabilities:
    version = qmp.greeting.version
    machines = qmp.execute("query-machines", reply=list[MachineInfo])
    commands = qmp.execute("query-commands", reply=list[CommandInfo])
    schema = qmp.execute("query-qmp-schema", reply=list[dict[str, Any]])
    return Capabilities(
        format=FORMAT,
        identity=identity,
        version=(version.qemu.major, version.qemu.minor, version.qemu.micro),
        package=version.package,
        machines=tuple(
            MachineType(
                m.name,
                alias=m.alias or "",
                is_default=bool(m.is_default),
                deprecated=bool(m.deprecated),
            )
            for m in machines
        ),
        devices=_types(qmp, "device"),
        objects=_types(qmp, "user-creatable"),
        commands=frozenset(command.name for command in commands),
        options=_options(qmp),
        enums=_enums(schema),
    )


class _Type(msgspec.Struct, frozen=True):
    name: str


def _types(qmp: QmpClient, interface: str) -> frozenset[str]:
    arguments = {"implements": interface, "abstract": False}
    found = qmp.execute("qom-list-types", arguments, reply=list[_Type])
    return frozenset(item.name for item in found)


class _Option(msgspec.Struct, frozen=True):
    option: str
    parameters: list[_Type]


def _options(qmp: QmpClient) -> dict[str, frozenset[str]]:
    found = qmp.execute("query-command-line-options", reply=list[_Option])
    return {o.option: frozenset(parameter.name for parameter in o.parameters) for o in found}


def _enums(schema: list[dict[str, Any]]) -> dict[str, frozenset[str]]:
    """Reduce the schema (300 KB) to the values of the tags that choose a driver or type."""
    entities = {entity["name"]: entity for entity in schema}
    found = {}
    for command, tag in _ENUMS.items():
        argument = entities[entities[command]["arg-type"]]
        kind = next(m["type"] for m in argument["members"] if m["name"] == tag)
        found[command] = _values(entities[kind])
    backend = next(m for m in _members(entities, _CHARDEV) if m["name"] == "backend")
    tagged = entities[backend["type"]]
    kind = next(m["type"] for m in tagged["members"] if m["name"] == "type")
    found[_CHARDEV] = _values(entities[kind])
    return found


def _members(entities: dict[str, dict[str, Any]], command: str) -> list[dict[str, Any]]:
    members: list[dict[str, Any]] = entities[entities[command]["arg-type"]]["members"]
    return members


def _values(entity: dict[str, Any]) -> frozenset[str]:
    if "members" in entity:
        return frozenset(member["name"] for member in entity["members"])
    return frozenset(entity["values"])
