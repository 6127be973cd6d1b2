"""Switches, bridge networks, cables and labs of a home: their records, and how they come and go.

They are directories, made and removed as machines are: there by name when their record is, which
is before anything serves them; gone by name at once and then erased.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import msgspec

from wirt.errors import AlreadyExists, NotFound, UsageError
from wirt.spec.setting import NAME_PATTERN
from wirt.store.atomic import host_error, sync_directory
from wirt.store.layout import NOUNS, Home, NetworkKind, NetworkPaths, private_directory
from wirt.store.locks import command_lock, try_lock
from wirt.store.record_file import VERSION, read_file, replace_file

_NAME = re.compile(NAME_PATTERN)
_VERBS = {"switch": "wirt switch ls", "bridge": "wirt net ls", "cable": "wirt cable ls",
          "lab": "wirt lab ls"}  # fmt: skip


class Process(msgspec.Struct, frozen=True):
    """A process that serves a wire; of another boot of the host, it is gone."""

    pid: int
    start_ticks: int
    boot_id: str


class SwitchRecord(msgspec.Struct, frozen=True):
    """A VDE switch. ``uid`` is whom it runs as when root started it; 0: as root."""

    version: int = VERSION
    created: float = 0.0
    ports: int = 32
    vlans: tuple[tuple[int, int, bool], ...] = ()
    """Port, VLAN, tagged."""
    uplink: str = ""
    """``tap``, ``bridge`` or ``network``; empty: none."""
    target: str = ""
    """Name of the interface, of the Linux bridge, or of the bridge network."""
    interface: str = ""
    """The TAP of the uplink."""
    persist: bool = False
    uid: int = 0
    process: Process | None = None


class BridgeRecord(msgspec.Struct, frozen=True):
    """A bridge network: a Linux bridge with an address, DHCP, names and a way out."""

    version: int = VERSION
    created: float = 0.0
    private: bool = False
    interface: str = ""
    address: str = ""
    """With prefix length: ``10.77.0.1/24``."""
    dhcp: bool = True
    outside: bool = True
    persist: bool = False
    holder: Process | None = None
    """Keeps the private namespaces."""
    dnsmasq: Process | None = None
    slirp: Process | None = None


class Shape(msgspec.Struct, frozen=True):
    """What a cable does to frames, in each direction. Milliseconds, percent, bytes a second."""

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    bandwidth: int = 0


class CableRecord(msgspec.Struct, frozen=True):
    """A cable between two ends: ``SWITCH``, ``SWITCH:PORT`` or ``ssh://HOST/SWITCH``."""

    version: int = VERSION
    created: float = 0.0
    a: str = ""
    b: str = ""
    cut: bool = False
    shape: Shape = Shape()
    ssh_options: tuple[str, ...] = ()
    process: Process | None = None


class LabRecord(msgspec.Struct, frozen=True):
    """A lab: its description, and the full name of everything that it owns."""

    version: int = VERSION
    created: float = 0.0
    content: str = ""
    """The description, as it was read."""
    parent: str = ""
    """The lab that this one was forked from."""
    maker: Process | None = None
    """The command that forks it, until it is whole; if that is killed, nothing of it stays."""
    machines: tuple[str, ...] = ()
    switches: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    cables: tuple[str, ...] = ()


R = TypeVar("R", SwitchRecord, BridgeRecord, CableRecord, LabRecord)
Record = SwitchRecord | BridgeRecord | CableRecord | LabRecord


def check_name(kind: NetworkKind, name: str) -> str:
    """Return ``name``. Raises UsageError for one that a wire cannot have."""
    if not _NAME.fullmatch(name):
        shown = name if len(name) <= 40 else f"{name[:37]}…"
        raise UsageError(
            f"{shown!r} cannot be the name of a {NOUNS[kind]}",
            hint="letters, digits, dot, dash and underscore, at most 63, no leading dot or dash",
        )
    return name


def names(home: Home, kind: NetworkKind) -> list[str]:
    """Return the names of all wires of a kind, sorted."""
    try:
        with os.scandir(home.networks(kind)) as entries:
            return sorted(entry.name for entry in entries if _NAME.fullmatch(entry.name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise host_error(error, home.networks(kind)) from error


def find(home: Home, kind: NetworkKind, name: str) -> NetworkPaths:
    """Return the paths of an existing wire. Raises NotFound with near names."""
    paths = home.network(kind, check_name(kind, name))
    if os.path.isdir(paths.root):
        return paths
    import difflib

    near = difflib.get_close_matches(name, names(home, kind), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"see what there is: {_VERBS[kind]}"
    raise NotFound(f"there is no {NOUNS[kind]} {name!r}", hint=hint)


@contextmanager
def new(home: Home, kind: NetworkKind, name: str, record: Record) -> Iterator[NetworkPaths]:
    """Make the wire ``name``, and yield it, locked, for the block to start; if that fails, it goes.

    A block that is killed leaves the wire, so that what it had started is found by the name.
    Raises AlreadyExists.
    """
    require_free(home, kind, name)
    target = home.network(kind, name)
    _prepare(home, kind)
    paths = home.network(kind, f".new-{os.urandom(8).hex()}")
    try:
        os.mkdir(paths.root, 0o711)
        lock = try_lock(paths.lock)
    except OSError as error:
        raise host_error(error, paths.root) from error
    try:
        _publish(paths, target, record)
        try:
            yield target
        except BaseException:
            remove(home, target)
            raise
    finally:
        if lock is not None:
            os.close(lock)


def _publish(paths: NetworkPaths, target: NetworkPaths, record: Record) -> None:
    try:
        write(paths, record)
        sync_directory(paths.root)
        _rename(paths, target)
    except BaseException:
        erase(paths)
        raise


def require_free(home: Home, kind: NetworkKind, name: str) -> None:
    """Refuse a name that is none, or that another wire has. Raises UsageError, AlreadyExists."""
    if os.path.exists(home.network(kind, check_name(kind, name)).root):
        raise _taken(kind, name)


def _prepare(home: Home, kind: NetworkKind) -> None:
    private_directory(home.root, 0o711)
    private_directory(os.path.dirname(home.networks(kind)), 0o711)
    private_directory(home.networks(kind), 0o711)
    private_directory(home.runtime_base, 0o711 if os.geteuid() == 0 else 0o700)
    with os.scandir(home.networks(kind)) as entries:
        left = [entry.name for entry in entries if entry.name.startswith((".new-", ".old-"))]
    for name in left:
        paths = home.network(kind, name)
        lock = try_lock(paths.lock) if os.path.exists(paths.lock) else None
        if lock is not None:
            erase(paths)
            os.close(lock)


def _rename(paths: NetworkPaths, target: NetworkPaths) -> None:
    try:
        os.rename(paths.root, target.root)
    except OSError as error:
        if os.path.exists(target.root):
            raise _taken(target.kind, target.name) from error
        raise host_error(error, target.root) from error
    sync_directory(os.path.dirname(target.root))


def _taken(kind: NetworkKind, name: str) -> AlreadyExists:
    return AlreadyExists(f"there is a {NOUNS[kind]} {name!r} already", hint="choose another name")


def remove(home: Home, paths: NetworkPaths) -> None:
    """Remove a wire whose lock the caller holds, and which nothing serves any more."""
    shutil.rmtree(paths.runtime, ignore_errors=True)
    grave = home.network(paths.kind, f".old-{os.urandom(8).hex()}")
    _rename(paths, grave)
    erase(grave)


def erase(paths: NetworkPaths) -> None:
    """Erase directory and sockets."""
    with contextlib.suppress(NotFound):
        shutil.rmtree(paths.runtime, ignore_errors=True)
    shutil.rmtree(paths.root, ignore_errors=True)


@contextmanager
def locked(
    home: Home, kind: NetworkKind, name: str, *, waiting: Callable[[str], None] | None = None
) -> Iterator[NetworkPaths]:
    """Hold the lock of an existing wire. Raises NotFound, Busy."""
    paths = find(home, kind, name)

    def tell() -> None:
        if waiting:
            waiting(f"waiting for another wirt command that is busy with {NOUNS[kind]} {name!r}")

    with command_lock(paths.lock, timeout=120.0, waiting=tell):
        yield paths


def read(paths: NetworkPaths, record: type[R]) -> R:
    """Return the record of a wire. Raises NotFound, HostError for one that is damaged."""
    cure = f"remove the {NOUNS[paths.kind]}, make it anew"
    found = read_file(paths.record, record, cure=cure)
    if found is None:
        raise NotFound(f"there is no {NOUNS[paths.kind]} {paths.name!r}", hint=_VERBS[paths.kind])
    return found


def write(paths: NetworkPaths, record: Record) -> None:
    """Replace the record atomically."""
    replace_file(paths.record, record)


def make_runtime(paths: NetworkPaths, uid: int, mode: int = 0o700) -> str:
    """Make the directory of the sockets anew, for ``uid`` (when root). Returns its path."""
    path = paths.runtime
    shutil.rmtree(path, ignore_errors=True)
    private_directory(path, mode)
    if uid:
        os.chown(path, uid, uid)
    return path
