"""Frozen machines: what is in a state, who needs it, and moving it in and out of existence.

A state is a directory that never changes once its manifest is there. Machines stand on it
(their disks are copy-on-write over its images, their memory private over its memory), and so
may states that were frozen from these machines: a family. Who stands on a state is read from
the records and manifests of the others, so nothing is counted and nothing can be miscounted;
snapshots and templates hold it with a file in ``holds/``.

The memory of a state is needed by name only to make machines of it: those that run have it
mapped. So it goes as soon as nothing holds the state, and takes no room beyond its machines.

Whoever builds on a state holds its lock shared until the record that names the state is
published; a state is removed under the exclusive lock, when nobody needs it.
"""

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import msgspec

from wirt.errors import NotFound, UsageError, WirtError, WrongState
from wirt.host.process_id import ProcessId
from wirt.spec.machine import Machine
from wirt.store.atomic import host_error, sync_directory, write_file
from wirt.store.layout import Home, StatePaths, private_directory
from wirt.store.record import read_record
from wirt.store.record_file import VERSION, read_file

_ID = re.compile(r"[0-9a-f]{16}")
_HOLD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+@-]{0,199}")
_GARBAGE_AFTER = 60.0
"""Seconds after which an unfinished state whose lock nobody holds belongs to nobody."""


class QemuFacts(msgspec.Struct, frozen=True):
    """The QEMU that saved the state: only the very same one loads it."""

    version: tuple[int, int, int]
    package: str
    path: str
    sha256: str


class GuestFacts(msgspec.Struct, frozen=True):
    """What was known of the guest, and by what it can be talked to."""

    helper: bool = False
    agent: bool = False
    hostname: str = ""
    kernel: str = ""
    os: str = ""
    boot_id: str = ""


class FrozenDisk(msgspec.Struct, frozen=True):
    """The image of ``disks[index]``. ``file`` is in the state's directory.

    A machine that is made of the state gets an overlay of ``virtual_size`` bytes over it;
    with ``shared``, the guest only reads, and all machines use the file itself.
    """

    index: int
    file: str
    format: str
    virtual_size: int
    shared: bool = False


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a state is. Times in Unix seconds, sizes in bytes."""

    version: int = VERSION
    created: float
    source: str
    """Name of the machine that was frozen."""
    parent: str = ""
    """The state that this one's images stand on."""
    machine: Machine
    """The description when it was frozen, with a versioned machine type."""
    accelerator: str
    cpu: str
    """The model that the guest saw, resolved: with another one it would hang."""
    host_cpu: str = ""
    """The host's processor, where the guest saw it (``-cpu host``)."""
    qemu: QemuFacts
    argv: tuple[str, ...]
    memory: int
    in_devices: bool = False
    """The memory is part of ``devices``, as a stream: nothing of it is shared."""
    disks: tuple[FrozenDisk, ...] = ()
    guest: GuestFacts = GuestFacts()
    clock: float
    """The host's clock when the guest was stopped: what the guest still believes."""
    pause: float = 0.0
    """Seconds that the source stood still."""
    method: Literal["freeze", "stream", "disks"]
    """``freeze``: saved without the memory; ``stream``: saved with it, and split; ``disks``: of
    a machine that was down, without devices and memory."""
    image: str = ""
    image_id: str = ""
    guest_user: str = ""


class State(msgspec.Struct, frozen=True):
    """A state and where it lies."""

    paths: StatePaths
    manifest: Manifest

    @property
    def id(self) -> str:
        return self.paths.id

    @property
    def memory(self) -> str:
        """The memory file: the one in RAM, or that on disk. Raises WrongState if it is lost.

        The one in RAM does not survive the host; machines and disks of the state do.
        """
        for path in (self.paths.memory, self.paths.kept_memory):
            if os.path.exists(path):
                return path
        raise WrongState(
            f"the memory of state {self.id} is gone: nothing held it, or the host was restarted",
            hint="its machines can be started; to fork, fork one of those",
        )


@contextmanager
def new_state(home: Home) -> Iterator[StatePaths]:
    """Yield a directory to fill; it is a state when ``publish`` was called in the block.

    What a failed block leaves is removed, what a killed one leaves is swept later.
    """
    private_directory(home.states, 0o711)
    paths = home.state(os.urandom(8).hex())
    try:
        os.mkdir(paths.root, 0o711)
        lock = _open_lock(paths)
    except OSError as error:
        raise host_error(error, paths.root) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        os.mkdir(paths.holds, 0o700)
        yield paths
    finally:
        os.close(lock)
        if not os.path.exists(paths.manifest):
            _remove_unneeded(home, paths)


def publish(paths: StatePaths, manifest: Manifest) -> State:
    """Make the directory a state. What it holds must be on disk already."""
    sync_directory(paths.root)
    write_file(paths.manifest, msgspec.json.encode(manifest) + b"\n")
    sync_directory(os.path.dirname(paths.root))
    return State(paths, manifest)


def replace_manifest(state: State, manifest: Manifest) -> None:
    """Say anew what a state is, where that changes nothing for who makes machines of it."""
    write_file(state.paths.manifest, msgspec.json.encode(manifest) + b"\n")


def _open_lock(paths: StatePaths) -> int:
    return os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def find_state(home: Home, ident: str) -> State:
    """Return a state by its id. Raises NotFound, HostError."""
    if not _ID.fullmatch(ident):
        raise UsageError(f"{ident[:40]!r} is no state's id", hint="16 hexadecimal digits")
    paths = home.state(ident)
    manifest = read_file(paths.manifest, Manifest, cure="see who stands on it: wirt tree")
    if manifest is None:
        raise NotFound(f"there is no state {ident}")
    return State(paths, manifest)


def state_ids(home: Home) -> list[str]:
    """Return the ids of all state directories, also of those that are being made."""
    try:
        with os.scandir(home.states) as entries:
            return sorted(entry.name for entry in entries if _ID.fullmatch(entry.name))
    except FileNotFoundError:
        return []


def states(home: Home) -> list[State]:
    """Return all states that can be read, oldest first."""
    found = []
    for ident in state_ids(home):
        with contextlib.suppress(WirtError):
            found.append(find_state(home, ident))
    return sorted(found, key=lambda state: state.manifest.created)


@contextmanager
def using(home: Home, ident: str) -> Iterator[State]:
    """Keep the state from being removed while something is built on it. Raises NotFound."""
    paths = home.state(ident)
    try:
        lock = os.open(paths.lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise NotFound(f"there is no state {ident}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield find_state(home, ident)
    finally:
        os.close(lock)


def hold(state: State, label: str) -> None:
    """Keep the state although no machine stands on it: ``template-debian:12``."""
    path = os.path.join(state.paths.holds, _label(label))
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        sync_directory(state.paths.holds)
    except OSError as error:
        raise host_error(error, path) from error


def release(state: State, label: str) -> None:
    """Give up a hold; ``collect`` removes what nobody needs."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(state.paths.holds, _label(label)))


def process_label() -> str:
    """Return the label of a hold that ends with this process."""
    process = ProcessId.of(os.getpid())
    return f"process.{os.getpid()}.{process.start_ticks if process else 0}"


def _is_stale(label: str) -> bool:
    kind, _, rest = label.partition(".")
    pid, _, ticks = rest.partition(".")
    if kind != "process" or not pid.isdigit() or not ticks.isdigit():
        return False
    return not ProcessId(int(pid), int(ticks)).alive()


def is_being_made(paths: StatePaths) -> bool:
    """True while a process that lives holds the state until it has given it to somebody."""
    return any(one.startswith("process.") and not _is_stale(one) for one in holds(paths))


def drop_memory(home: Home, ident: str) -> None:
    """Give up the memory of a state that nothing holds and nobody builds on."""
    paths = home.state(ident)
    for label in holds(paths):
        if _is_stale(label):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(paths.holds, label))
    try:
        lock = os.open(paths.lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not holds(paths):
            for path in (paths.memory, paths.kept_memory):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
    except BlockingIOError:
        return  # somebody makes a machine of it
    finally:
        os.close(lock)


def holds(paths: StatePaths) -> list[str]:
    """Return why the state is kept although no machine may stand on it."""
    try:
        return sorted(os.listdir(paths.holds))
    except FileNotFoundError:
        return []


def _label(label: str) -> str:
    if not _HOLD.fullmatch(label):
        raise UsageError(f"{label[:40]!r} cannot name a hold")
    return label


def users(home: Home, ident: str) -> list[str]:
    """Return who stands on the state: machines by name, states as ``state ID``.

    What cannot be read may stand on anything, so it is named too.
    """
    found, below = [], set()
    for name in _machine_directories(home):
        try:
            below.add(state := read_record(home.vm(name).record).state)
            stands = state == ident
        except WirtError:
            stands = True
        if stands:
            found.append(name)
    for other in state_ids(home):
        try:
            stands = other != ident and find_state(home, other).manifest.parent == ident
        except NotFound:
            # Not a state yet: its maker's machine stands on what it needs. But if that stands
            # on it already, the maker was killed, and what it stands on is not known.
            stands = other != ident and other in below
        except WirtError:
            stands = True
        if stands:
            found.append(f"state {other}")
    return found


def _machine_directories(home: Home) -> list[str]:
    """Return machines, also those being made: their records may name states."""
    try:
        return sorted(name for name in os.listdir(home.vms) if not name.startswith(".old-"))
    except FileNotFoundError:
        return []


def collect(home: Home, ident: str) -> bool:
    """Remove the state if nobody needs it, then likewise the one below. True if removed."""
    paths = home.state(ident)
    try:
        parent = find_state(home, ident).manifest.parent
    except NotFound:
        parent = ""
    except WirtError:
        return False
    if not _remove_unneeded(home, paths):
        return False
    if parent:
        collect(home, parent)
    return True


def _remove_unneeded(home: Home, paths: StatePaths) -> bool:
    try:
        lock = os.open(paths.lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if holds(paths) or users(home, paths.id):
            return False
        _erase(home, paths)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def _erase(home: Home, paths: StatePaths) -> None:
    """Gone by name at once, so that no half of a state can be found."""
    grave = os.path.join(home.states, f".old-{os.urandom(8).hex()}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(paths.root, grave)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(paths.memory)
    shutil.rmtree(grave, ignore_errors=True)


def sweep_states(home: Home) -> None:
    """Remove what killed commands left: unfinished states, graves, memory of nobody."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(home.states):
            if name.startswith(".old-"):
                shutil.rmtree(os.path.join(home.states, name), ignore_errors=True)
    for ident in state_ids(home):
        paths = home.state(ident)
        if os.path.exists(paths.manifest):
            drop_memory(home, ident)
        elif _is_old(paths.root):
            _remove_unneeded(home, paths)
    _sweep_unneeded(home)
    _sweep_memory(home)


def _sweep_unneeded(home: Home) -> None:
    """Remove states whose last user was killed before it let go of them."""
    unheld = [path for path in map(home.state, state_ids(home))
              if os.path.exists(path.manifest) and not holds(path)]  # fmt: skip
    needed = _needed(home) if unheld else None
    if needed is None:
        return
    for paths in unheld:
        if paths.id not in needed:
            collect(home, paths.id)


def _needed(home: Home) -> set[str] | None:
    """Return the states that machines and states name; None if one cannot be read."""
    try:
        machines = {read_record(home.vm(name).record).state for name in _machine_directories(home)}
    except WirtError:
        return None
    parents = set()
    for ident in state_ids(home):
        try:
            parents.add(find_state(home, ident).manifest.parent)
        except NotFound:
            if ident in machines:  # its maker was killed: what it stands on is not known
                return None
        except WirtError:
            return None
    return machines | parents


def _is_old(path: str) -> bool:
    try:
        return time.time() - os.stat(path).st_mtime > _GARBAGE_AFTER
    except FileNotFoundError:
        return False


def _sweep_memory(home: Home) -> None:
    try:
        names = os.listdir(home.memory or "/nonexistent")
        files = [name for name in names if not name.startswith("home")]
    except FileNotFoundError:
        return
    if not files:
        return
    known = {f"{ident}.mem" for ident in state_ids(home)}
    for name in _machine_directories(home):
        with contextlib.suppress(FileNotFoundError):
            known.add(os.path.basename(home.vm(name).memory))
    for name in set(files) - known:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(home.memory, name))


def make_memory_directory(home: Home) -> str:
    """Make the directory of memory files, and sweep those of homes that are gone."""
    directory = home.memory
    base = os.path.dirname(directory)
    private_directory(base, 0o711)
    known = os.path.isdir(directory)
    private_directory(directory, 0o711)
    _name_home(home, directory)
    if known:
        return directory
    for name in os.listdir(base):
        if not _is_of_a_home(os.path.join(base, name)):
            shutil.rmtree(os.path.join(base, name), ignore_errors=True)
    return directory


def _name_home(home: Home, directory: str) -> None:
    """Let the link in ``directory`` lead to the home: a deleted one may have had its inode."""
    link = os.path.join(directory, "home")
    with contextlib.suppress(OSError):
        if os.readlink(link) == home.root:
            return
    fresh = f"{link}.{os.getpid()}"
    os.symlink(home.root, fresh)
    os.rename(fresh, link)


def _is_of_a_home(directory: str) -> bool:
    try:
        info = os.stat(os.path.join(directory, "home"))
    except FileNotFoundError:
        return not os.path.lexists(os.path.join(directory, "home"))  # being made just now
    return os.path.basename(directory) == f"{info.st_dev:x}-{info.st_ino:x}"
