"""Every file, directory and socket of wirt, with owner and lifetime.

Nothing else builds paths.

::

    HOME = $WIRT_HOME, else /var/lib/wirt (root) or $XDG_DATA_HOME/wirt (users)
    ├── vms/                  0711: QEMU's own uid passes through, nobody lists
    │   ├── NAME/             0711 one machine; its inode is its identity
    │   │   ├── machine.toml  0600 the description, edited by people
    │   │   ├── state.json    0600 versioned record, see wirt.store.record
    │   │   ├── started.json  0600 the description that the running QEMU was started with
    │   │   ├── lock          held by the wirt command that changes this machine
    │   │   ├── run.lock      held by the QEMU process: held means running
    │   │   ├── disks.lock    held by the process that serves its disks, where one does
    │   │   ├── snapshots/    0700 NAME.json for each: which state it is, see wirt.store.snapshots
    │   │   ├── disks/        0700 of the VM's uid: images and UEFI variables
    │   │   ├── tpm/          0700 of the VM's uid: what its TPM keeps, swtpm's directory
    │   │   ├── next-tpm/     likewise, for the QEMU that it is being handed over to
    │   │   └── log/          0700 of the VM's uid: console and QEMU messages, bounded
    │   ├── .new-XXXXXXXX/    a machine being made; garbage once its lock is free
    │   └── .old-XXXXXXXX/    a machine being removed; likewise
    ├── networks/             0711
    │   └── KIND/NAME/        a switch, bridge, cable or lab; made and removed as machines are
    │       ├── state.json    0600 what it is and what serves it, see wirt.store.wires
    │       ├── lock          held by the wirt command that changes it
    │       └── run.lock      held by the process that serves it: held means alive
    ├── states/               0711: frozen machines, see wirt.store.states
    │   ├── ID/               0711 immutable once it has a manifest
    │   │   ├── manifest.json 0600 written last: without it there is no state
    │   │   ├── lock          shared: somebody builds on the state; exclusive: it is removed
    │   │   ├── holds/        0700 one empty file for each reason to keep the state
    │   │   ├── devices       0440 what QEMU saved of its devices
    │   │   ├── diskN.FORMAT  0440 frozen image of disks[N]
    │   │   ├── uefi-variables.fd
    │   │   ├── tpm/          of a machine that was down; else QEMU has it in devices
    │   │   └── mem           0440 the memory, if it is kept on disk
    │   └── .old-XXXXXXXX/    a state being removed; garbage
    ├── templates/            0700: warm images, see wirt.store.templates
    │   ├── FINGERPRINT.json  0600 which state is one, and of what; its time is that of its use
    │   └── FINGERPRINT.lock  held by the wirt command that makes it
    ├── pools/                0700: how many forks of a template wait, see wirt.store.pools
    │   ├── FINGERPRINT.json  0600 of which template, and how many
    │   └── FINGERPRINT.lock  held by the wirt command that fills or changes it
    ├── images/               guest images, see wirt.catalog
    └── cache/                facts that can be found again

    RUN = /run/wirt (root), $XDG_RUNTIME_DIR/wirt, else /tmp/wirt-UID (users)
    ├── DEV-INODE/            0700 of the VM's uid: sockets of one machine, while it runs;
    │                         likewise of a switch, bridge or cable
    │   └── next/             those of the QEMU that it is being handed over to
    └── admit/                locks of forks in their first moments

    MEMORY = /dev/shm/wirt-UID/DEV-INODE of HOME: memory that can be frozen, in RAM
    ├── home                  link to HOME; the directory is garbage when that is another
    ├── vm-INODE.mem          0600 memory of a running machine, by its directory's inode
    └── ID.mem                0440 memory of a state that is not kept on disk

A machine's runtime directory is named by device and inode of its directory: a rename keeps
it, a copy gets another one, and the path stays short (a socket path is at most 107 bytes).
"""

from __future__ import annotations

import os
import stat
from typing import Literal

import msgspec

from wirt.errors import HostError, NotFound, UsageError

SOCKET_PATH_MAX = 107


class OwnPaths(msgspec.Struct, frozen=True):
    """The paths that machines and wires have alike. ``root`` may be a directory being made."""

    root: str
    runtime_base: str

    @property
    def name(self) -> str:
        return os.path.basename(self.root)

    @property
    def record(self) -> str:
        return os.path.join(self.root, "state.json")

    @property
    def lock(self) -> str:
        return os.path.join(self.root, "lock")

    @property
    def run_lock(self) -> str:
        return os.path.join(self.root, "run.lock")

    @property
    def runtime(self) -> str:
        """The directory of the sockets. Raises NotFound if what they belong to is gone."""
        try:
            info = os.stat(self.root)
        except FileNotFoundError:
            raise self._gone() from None
        return os.path.join(self.runtime_base, f"{info.st_dev:x}-{info.st_ino:x}")

    def _gone(self) -> NotFound:
        return NotFound(f"there is no {self.name!r}")


class VmPaths(OwnPaths, frozen=True):
    """The paths of one machine."""

    memory_directory: str = ""

    @property
    def home(self) -> Home:
        """The home that the machine is in."""
        root = os.path.dirname(os.path.dirname(self.root))
        return Home(root, self.runtime_base, os.path.dirname(self.memory_directory))

    @property
    def spec(self) -> str:
        return os.path.join(self.root, "machine.toml")

    @property
    def started(self) -> str:
        return os.path.join(self.root, "started.json")

    @property
    def disks(self) -> str:
        return os.path.join(self.root, "disks")

    @property
    def snapshots(self) -> str:
        return os.path.join(self.root, "snapshots")

    def snapshot(self, name: str) -> str:
        return os.path.join(self.snapshots, f"{name}.json")

    @property
    def uefi_variables(self) -> str:
        return os.path.join(self.disks, "uefi-variables.fd")

    @property
    def tpm(self) -> str:
        return os.path.join(self.root, "tpm")

    @property
    def next_tpm(self) -> str:
        return os.path.join(self.root, "next-tpm")

    @property
    def seed(self) -> str:
        return os.path.join(self.disks, "seed.img")

    @property
    def log(self) -> str:
        return os.path.join(self.root, "log")

    @property
    def console_log(self) -> str:
        return os.path.join(self.log, "console.log")

    @property
    def qemu_log(self) -> str:
        return os.path.join(self.log, "qemu.log")

    @property
    def disks_lock(self) -> str:
        """Held by the server of served disks: one at a time."""
        return os.path.join(self.root, "disks.lock")

    @property
    def disk_server_log(self) -> str:
        """What the server of served disks has to say, bounded."""
        return os.path.join(self.log, "disk-server.log")

    @property
    def ssh_known_hosts(self) -> str:
        return os.path.join(self.root, "known_hosts")

    def _gone(self) -> NotFound:
        return NotFound(f"there is no machine {self.name!r}", hint="wirt ls")

    @property
    def memory(self) -> str:
        """The file of the memory while the machine runs, if it was started with one."""
        return os.path.join(self.memory_directory, f"vm-{os.stat(self.root).st_ino:x}.mem")

    def socket(self, name: str) -> str:
        """Return the path of the socket ``name`` (``qmp``, ``serial0``, a channel …)."""
        return os.path.join(self.runtime, f"{name}.sock")

    @property
    def next_runtime(self) -> str:
        return os.path.join(self.runtime, "next")

    def next_socket(self, name: str) -> str:
        """Return where the QEMU listens to which the machine is being handed over."""
        return os.path.join(self.next_runtime, f"{name}.sock")

    def guest_lock(self, port: int) -> str:
        """The lock of a helper port: one session at a time."""
        return os.path.join(self.runtime, f"guest{port}.lock")


class StatePaths(msgspec.Struct, frozen=True):
    """The paths of one state. ``root`` exists before the state does."""

    root: str
    memory_directory: str

    @property
    def id(self) -> str:
        return os.path.basename(self.root)

    @property
    def manifest(self) -> str:
        return os.path.join(self.root, "manifest.json")

    @property
    def lock(self) -> str:
        return os.path.join(self.root, "lock")

    @property
    def holds(self) -> str:
        return os.path.join(self.root, "holds")

    @property
    def devices(self) -> str:
        return os.path.join(self.root, "devices")

    @property
    def uefi_variables(self) -> str:
        return os.path.join(self.root, "uefi-variables.fd")

    @property
    def tpm(self) -> str:
        return os.path.join(self.root, "tpm")

    @property
    def kept_memory(self) -> str:
        """The memory on disk: survives a reboot of the host."""
        return os.path.join(self.root, "mem")

    @property
    def memory(self) -> str:
        """The memory in RAM: where a machine's memory file goes when it is frozen."""
        return os.path.join(self.memory_directory, f"{self.id}.mem")

    def disk(self, index: int, suffix: str) -> str:
        return os.path.join(self.root, f"disk{index}.{suffix}")


NetworkKind = Literal["switch", "bridge", "cable", "lab"]
NOUNS = {"switch": "switch", "bridge": "network", "cable": "cable", "lab": "lab"}
"""How users call a kind."""


class NetworkPaths(OwnPaths, frozen=True, kw_only=True):
    """The paths of a switch, a bridge network, a cable or a lab."""

    kind: NetworkKind

    def _gone(self) -> NotFound:
        return NotFound(f"there is no {NOUNS[self.kind]} {self.name!r}")

    def file(self, name: str) -> str:
        """Return the path of a socket or file in the runtime directory."""
        return os.path.join(self.runtime, name)


class Home(msgspec.Struct, frozen=True):
    """All state of wirt under one directory, and the directories of its sockets and memory."""

    root: str
    runtime_base: str
    memory_base: str = ""

    @property
    def vms(self) -> str:
        return os.path.join(self.root, "vms")

    @property
    def admission(self) -> str:
        return os.path.join(self.runtime_base, "admit")

    @property
    def states(self) -> str:
        return os.path.join(self.root, "states")

    @property
    def templates(self) -> str:
        return os.path.join(self.root, "templates")

    def template(self, fingerprint: str) -> str:
        return os.path.join(self.templates, f"{fingerprint}.json")

    def template_lock(self, fingerprint: str) -> str:
        return os.path.join(self.templates, f"{fingerprint}.lock")

    @property
    def pools(self) -> str:
        return os.path.join(self.root, "pools")

    def pool(self, fingerprint: str) -> str:
        return os.path.join(self.pools, f"{fingerprint}.json")

    def pool_lock(self, fingerprint: str) -> str:
        return os.path.join(self.pools, f"{fingerprint}.lock")

    @property
    def images(self) -> str:
        return os.path.join(self.root, "images")

    @property
    def cache(self) -> str:
        return os.path.join(self.root, "cache")

    @property
    def memory(self) -> str:
        """The directory of memory files; "" before the home exists."""
        try:
            info = os.stat(self.root)
        except FileNotFoundError:
            return ""
        base = self.memory_base or _default_memory()
        return os.path.join(base, f"{info.st_dev:x}-{info.st_ino:x}")

    def vm(self, name: str) -> VmPaths:
        return self.machine_at(os.path.join(self.vms, name))

    def machine_at(self, root: str) -> VmPaths:
        return VmPaths(root, self.runtime_base, self.memory)

    def state(self, ident: str) -> StatePaths:
        return StatePaths(os.path.join(self.states, ident), self.memory)

    def networks(self, kind: NetworkKind) -> str:
        return os.path.join(self.root, "networks", kind)

    def network(self, kind: NetworkKind, name: str) -> NetworkPaths:
        root = os.path.join(self.networks(kind), name)
        return NetworkPaths(root, self.runtime_base, kind=kind)


def default_home() -> Home:
    """Return the home that the environment names. Raises UsageError for a relative one."""
    root = os.environ.get("WIRT_HOME", "")
    if root and not os.path.isabs(root):
        raise UsageError(f"WIRT_HOME is {root!r}: it must be an absolute path")
    return Home(root or _default_root(), _default_runtime())


def home_at(root: str) -> Home:
    """Return the home at ``root``, for programs and tests that keep their own."""
    return Home(os.path.abspath(root), _default_runtime())


def _default_root() -> str:
    if os.geteuid() == 0:
        return "/var/lib/wirt"
    data = os.environ.get("XDG_DATA_HOME", "")
    return os.path.join(data or os.path.expanduser("~/.local/share"), "wirt")


def _default_runtime() -> str:
    if os.geteuid() == 0:
        return "/run/wirt"
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if base and os.path.isdir(base):
        return os.path.join(base, "wirt")
    return f"/tmp/wirt-{os.geteuid()}"  # noqa: S108 - ownership is checked by private_directory


def _default_memory() -> str:
    return f"/dev/shm/wirt-{os.geteuid()}"  # noqa: S108 - ownership is checked by private_directory


def private_directory(path: str, mode: int = 0o700) -> str:
    """Make ``path`` unless it exists; refuse one that another user could have made.

    Raises HostError.
    """
    try:
        os.makedirs(path, mode, exist_ok=True)
        info = os.lstat(path)
    except OSError as error:
        raise HostError(
            f"{path}: {error.strerror}", hint="set WIRT_HOME to a directory that you can write"
        ) from error
    if not stat.S_ISDIR(info.st_mode) or info.st_uid not in {os.geteuid(), 0}:
        raise HostError(
            f"{path} is not a directory of yours",
            hint="remove it, or set XDG_RUNTIME_DIR and WIRT_HOME to directories of yours",
        )
    if stat.S_IMODE(info.st_mode) & ~mode & 0o077 and info.st_uid == os.geteuid():
        os.chmod(path, mode)
    return path
