"""Control groups: the version, the controllers, and whether they are ours to use."""

from __future__ import annotations

import os

import msgspec

from wirt.host.finding import Finding, Status
from wirt.host.kernel import read_line

_WANTED = ("cpu", "io", "memory", "pids")


class Cgroups(msgspec.Struct, frozen=True):
    """What this process can use. ``version`` is 0 without any cgroup file system."""

    version: int
    directory: str
    """Version 2: our own group. Version 1: where the controllers are mounted."""
    controllers: frozenset[str]
    writable: bool


def parse_mounts(mountinfo: str) -> dict[str, str]:
    """Read /proc/PID/mountinfo: controller (``""`` for version 2) → mount point."""
    found: dict[str, str] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        left, right = before.split(), after.split()
        if len(left) < 5 or len(right) < 3:
            continue
        if right[0] == "cgroup2":
            found.setdefault("", _unescape(left[4]))
        elif right[0] == "cgroup":
            for option in right[2].split(","):
                found.setdefault(option, _unescape(left[4]))
    return found


def _unescape(path: str) -> str:
    """Undo the octal escapes of proc(5): space, tab, newline, backslash."""
    for escape, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(escape, char)
    return path


def host_cgroups() -> Cgroups:
    """Return the cgroups of this process."""
    mounts = parse_mounts(read_line("/proc/self/mountinfo"))
    legacy = {name: path for name, path in mounts.items() if name in {"cpu", "memory", "blkio"}}
    if legacy:
        names = frozenset("io" if name == "blkio" else name for name in mounts)
        place = next(iter(legacy.values()))
        writable = all(os.access(path, os.W_OK) for path in legacy.values())
        return Cgroups(1, place, names & {*_WANTED, "cpuset", "io"}, writable)
    if "" not in mounts:
        return Cgroups(0, "", frozenset(), writable=False)
    own = _own_group(read_line("/proc/self/cgroup"))
    directory = os.path.join(mounts[""], own.lstrip("/"))
    names = frozenset(read_line(f"{directory}/cgroup.controllers").split())
    writable = os.access(directory, os.W_OK) and os.access(f"{directory}/cgroup.procs", os.W_OK)
    return Cgroups(2, directory, names, writable)


def _own_group(text: str) -> str:
    groups = (line.split(":", 2) for line in text.splitlines())
    return next((group[2] for group in groups if len(group) == 3 and group[0] == "0"), "/")


def cgroups() -> list[Finding]:
    """Examine whether limits of CPU, memory, I/O and processes can be set."""
    return [judge(host_cgroups())]


def judge(found: Cgroups) -> Finding:
    """Say what can be limited."""
    ident, title = "cgroup", "control groups"
    if found.version == 0:
        cure = "mount -t cgroup2 none /sys/fs/cgroup"
        return Finding(ident, title, "warn", "not mounted: machines cannot be limited", cure)
    names = " ".join(sorted(found.controllers)) or "no controller"
    what = f"version {found.version} ({names})"
    if not found.writable:
        return Finding(
            ident, title, "warn", f"{what}, but {found.directory} is not ours: no limits",
            "systemd-run --user --scope -p Delegate=yes bash, and use wirt in that shell",
        )  # fmt: skip
    missing = [name for name in _WANTED if name not in found.controllers]
    if missing and found.version == 2:
        return Finding(
            ident, title, "warn", f"{what}, without {' '.join(missing)}",
            "systemctl edit user@.service: [Service] Delegate=cpu cpuset io memory pids",
        )  # fmt: skip
    status: Status = "ok" if found.version == 2 else "info"
    return Finding(ident, title, status, f"{what} in {found.directory}")
