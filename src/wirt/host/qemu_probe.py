"""Asking a QEMU binary what it can do, once for each version of the file."""

from __future__ import annotations

import glob
import os
import socket
import subprocess
import zlib
from typing import Any

import msgspec

from wirt.errors import ProtocolError, QemuError, Timeout, WirtError
from wirt.host import cache
from wirt.host.process import find_program, mortal, spawn
from wirt.protocols.qmp.client import QmpClient
from wirt.protocols.qmp.messages import CommandInfo, MachineInfo
from wirt.qapi.capabilities import Capabilities, Identity, MachineType

FORMAT = 2
"""Of the cached record: raised when its meaning changes."""
MODULE_DIRECTORIES = ("/usr/lib/*/qemu", "/usr/lib64/qemu", "/usr/lib/qemu")
_SECONDS = 60.0
_MOST_WORDS = 1 << 16
_ENUMS = {
    "blockdev-add": "driver",
    "netdev_add": "type",
    "object-add": "qom-type",
}
_CHARDEV = "chardev-add"


def probe(binary: str, cache_dir: str) -> Capabilities:
    """Return what ``binary`` can do, from the cache if the file is the same.

    Raises MissingDependency when it is absent, QemuError or HostError when it is broken.
    """
    path = os.path.realpath(find_program(binary))
    identity = _identity(path)
    cached = os.path.join(cache_dir, f"qemu-{zlib.crc32(path.encode()):08x}.json")
    known = cache.read(cached, Capabilities)
    if known is not None and (known.format, known.identity) == (FORMAT, identity):
        return known
    fresh = ask(path, identity)
    cache.write(cached, fresh)
    return fresh


def _identity(path: str) -> Identity:
    info = os.stat(path)
    return Identity(path, info.st_size, info.st_mtime_ns, info.st_ino, _modules_changed())


def _modules_changed() -> int:
    """Return when a module of QEMU came or went last: each brings devices or displays."""
    directories = [path for pattern in MODULE_DIRECTORIES for path in glob.glob(pattern)]
    return max((os.stat(path).st_mtime_ns for path in directories), default=0)


def ask(path: str, identity: Identity) -> Capabilities:
    """Start ``path`` without a machine and ask it. Raises QemuError, HostError."""
    ours, theirs = socket.socketpair()
    said = os.memfd_create("wirt-qemu-probe", os.MFD_CLOEXEC)
    argv = [
        path, "-M", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S",
        "-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control",
    ]  # fmt: skip
    try:
        try:
            fds = [theirs.fileno()]
            process = spawn(mortal(argv), stdout=subprocess.DEVNULL, stderr=said, pass_fds=fds)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        try:
            with QmpClient.from_socket(ours, timeout=_SECONDS) as qmp:
                return _collect(qmp, identity)
        except (ProtocolError, Timeout) as error:
            raise _broken(path, error, os.pread(said, _MOST_WORDS, 0)) from error
        finally:
            process.kill()
            process.wait()
    finally:
        os.close(said)


def _broken(path: str, error: WirtError, said: bytes) -> QemuError:
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    words = lines[-1] if lines else error.message
    return QemuError(
        f"{path} does not work as QEMU: {words}", hint=f"see what it says: {path} --version"
    )


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
        accelerators=_accelerators(qmp),
        commands=frozenset(command.name for command in commands),
        options=_options(qmp),
        enums=_known_enums(schema),
    )


class _Type(msgspec.Struct, frozen=True):
    name: str


def _types(qmp: QmpClient, interface: str) -> frozenset[str]:
    arguments = {"implements": interface, "abstract": False}
    found = qmp.execute("qom-list-types", arguments, reply=list[_Type])
    return frozenset(item.name for item in found)


def _accelerators(qmp: QmpClient) -> frozenset[str]:
    types = _types(qmp, "accel")
    return frozenset(name.removesuffix("-accel") for name in types if name.endswith("-accel"))


class _Option(msgspec.Struct, frozen=True):
    option: str
    parameters: list[_Type]


def _options(qmp: QmpClient) -> dict[str, frozenset[str]]:
    found = qmp.execute("query-command-line-options", reply=list[_Option])
    return {o.option: frozenset(parameter.name for parameter in o.parameters) for o in found}


def _known_enums(schema: list[dict[str, Any]]) -> dict[str, frozenset[str]]:
    try:
        return _enums(schema)
    except (KeyError, StopIteration, TypeError) as error:
        raise ProtocolError("query-qmp-schema has not the form of QEMU's") from error


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
