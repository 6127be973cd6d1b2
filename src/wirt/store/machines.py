"""The machines of a home: names, directories, and moving them in and out of existence."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from wirt.errors import AlreadyExists, HostError, NotFound, UsageError
from wirt.host.holders import kill_holders
from wirt.spec.setting import NAME_PATTERN
from wirt.store.atomic import host_error, sync_directory
from wirt.store.layout import Home, VmPaths, private_directory
from wirt.store.locks import command_lock, try_lock

_NAME = re.compile(NAME_PATTERN)
_GARBAGE_AFTER = 60.0
"""Seconds after which a directory without a lock file belongs to nobody."""


def check_name(name: str) -> str:
    """Return ``name``. Raises UsageError for one that is no machine's name."""
    if not _NAME.fullmatch(name):
        shown = name if len(name) <= 40 else f"{name[:37]}…"
        raise UsageError(
            f"{shown!r} cannot be a machine's name",
            hint="letters, digits, dot, dash and underscore, at most 63, no leading dot or dash",
        )
    return name


def machine_names(home: Home) -> list[str]:
    """Return the names of all machines, sorted."""
    try:
        with os.scandir(home.vms) as entries:
            return sorted(entry.name for entry in entries if _NAME.fullmatch(entry.name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise host_error(error, home.vms) from error


def find(home: Home, name: str) -> VmPaths:
    """Return the paths of an existing machine. Raises NotFound with near names."""
    check_name(name)
    paths = home.vm(name)
    if os.path.isdir(paths.root):
        return paths
    import difflib

    near = difflib.get_close_matches(name, machine_names(home), n=1)
    raise NotFound(
        f"there is no machine {name!r}",
        hint=f"did you mean {near[0]!r}?" if near else "see the machines: wirt ls",
    )


def prepare(home: Home) -> None:
    """Make the directories of a home, and sweep what killed commands left."""
    private_directory(home.root, 0o711)
    private_directory(home.vms, 0o711)
    private_directory(home.cache, 0o711)
    private_directory(home.runtime_base, 0o711 if os.geteuid() == 0 else 0o700)
    sweep(home)


class Making(msgspec.Struct):
    """A machine that has no name yet, and whose lock we hold."""

    home: Home
    paths: VmPaths
    name: str
    published: bool = False

    def publish(self) -> VmPaths:
        """Give it its name; the lock stays held. Raises AlreadyExists."""
        target = self.home.vm(self.name)
        sync_directory(self.paths.root)
        _publish(self.paths, target)
        self.paths, self.published = target, True
        return target

    def replace(self) -> VmPaths:
        """Change places with the machine of that name in one step; both locks stay held.

        Returns where the old one is now: garbage, which is swept once its lock is free.
        """
        from wirt.image.exchange import exchange

        old, target = self.paths, self.home.vm(self.name)
        sync_directory(old.root)
        try:
            exchange(old.root, target.root)
        except OSError as error:
            raise host_error(error, target.root) from error
        self.paths, self.published = target, True
        return old


@contextmanager
def making(home: Home, name: str) -> Iterator[Making]:
    """Yield a directory to fill and then to publish; the lock is held to the end of the block.

    Raises AlreadyExists. What a failed or killed block leaves unpublished is swept later.
    """
    check_name(name)
    if os.path.exists(home.vm(name).root):
        raise _taken(name)
    with replacing(home, name) as made:
        yield made


@contextmanager
def replacing(home: Home, name: str) -> Iterator[Making]:
    """Do so for a directory that shall take the place of a machine whose lock the caller holds."""
    prepare(home)
    paths, lock = _new_directory(home)
    made = Making(home, paths, name)
    try:
        os.mkdir(paths.disks, 0o700)
        os.mkdir(paths.log, 0o700)
        yield made
    finally:
        if not made.published:
            _discard(home, paths)
        os.close(lock)


def _new_directory(home: Home) -> tuple[VmPaths, int]:
    """Return a directory that no sweep takes for garbage, and its lock."""
    while True:
        paths = home.machine_at(os.path.join(home.vms, f".new-{os.urandom(8).hex()}"))
        try:
            os.mkdir(paths.root, 0o711)
            lock = try_lock(paths.lock)
        except FileNotFoundError:
            continue  # swept between the two
        except OSError as error:
            raise host_error(error, paths.root) from error
        if lock is not None and os.path.exists(paths.lock):
            return paths, lock
        if lock is not None:
            os.close(lock)


@contextmanager
def new_machine(home: Home, name: str) -> Iterator[VmPaths]:
    """Yield a directory to fill; it becomes the machine ``name`` when the block ends well.

    Raises AlreadyExists. What a failed or killed block leaves is swept later.
    """
    with making(home, name) as made:
        yield made.paths
        made.publish()


def _publish(paths: VmPaths, target: VmPaths) -> None:
    try:
        # A machine's directory is never empty, so rename() cannot replace one.
        os.rename(paths.root, target.root)
    except OSError as error:
        if os.path.exists(target.root):
            raise _taken(target.name) from error
        raise host_error(error, target.root) from error
    sync_directory(os.path.dirname(target.root))


def _taken(name: str) -> AlreadyExists:
    return AlreadyExists(
        f"there is a machine {name!r} already",
        hint=f"choose another name, or remove it: wirt rm {name}",
    )


def rename_machine(home: Home, old: VmPaths, new: str) -> VmPaths:
    """Give a machine another name; its locks, sockets and inode stay. Raises AlreadyExists."""
    check_name(new)
    target = home.vm(new)
    if os.path.exists(target.root):
        raise _taken(new)
    _publish(old, target)
    return target


def remove_machine(home: Home, paths: VmPaths) -> None:
    """Remove a machine whose lock the caller holds: gone by name at once, then erased."""
    runtime, memory = paths.runtime, paths.memory
    grave = os.path.join(home.vms, f".old-{os.urandom(8).hex()}")
    try:
        os.rename(paths.root, grave)
        sync_directory(home.vms)
    except OSError as error:
        raise host_error(error, paths.root) from error
    _erase(runtime)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(memory)
    _erase(grave)


def sweep(home: Home) -> None:
    """Erase what killed commands left: directories whose lock nobody holds."""
    try:
        with os.scandir(home.vms) as entries:
            left = [e.path for e in entries if e.name.startswith((".new-", ".old-"))]
    except FileNotFoundError:
        return
    for path in left:
        lock = _claim(path)
        if lock is not None:
            try:
                _discard(home, home.machine_at(path))
            finally:
                os.close(lock)


def _discard(home: Home, paths: VmPaths) -> None:
    """Erase a directory that is no machine; a fork in the making has a QEMU already."""
    kill_holders(paths.run_lock)
    with contextlib.suppress(NotFound):
        _erase(home.machine_at(paths.root).runtime)
    _erase(paths.root)


def _claim(path: str) -> int | None:
    """Return the lock of a directory that is garbage, so that nobody else takes it for his."""
    lock = os.path.join(path, "lock")
    try:
        if os.path.exists(lock) or time.time() - os.stat(path).st_mtime > _GARBAGE_AFTER:
            return try_lock(lock)
    except OSError:
        return None  # being erased by somebody else
    return None


def _erase(path: str) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def locked(
    home: Home, name: str, *, timeout: float = 600.0, waiting: Callable[[str], None] | None = None
) -> Iterator[VmPaths]:
    """Hold the lock of an existing machine. Raises NotFound, Busy."""
    paths = find(home, name)

    def tell() -> None:
        if waiting:
            waiting(f"waiting for another wirt command that is busy with {name!r}")

    with command_lock(paths.lock, timeout=timeout, waiting=tell):
        yield paths


def read_spec(paths: VmPaths) -> str:
    """Return the text of machine.toml. Raises NotFound, HostError."""
    try:
        with open(paths.spec, encoding="utf-8") as file:
            return file.read(1 << 20)
    except FileNotFoundError:
        raise NotFound(f"{paths.spec} is missing", hint=f"wirt rm {paths.name}") from None
    except UnicodeDecodeError as error:
        raise HostError(f"{paths.spec} is not UTF-8 text") from error
    except OSError as error:
        raise host_error(error, paths.spec) from error
