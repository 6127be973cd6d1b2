"""Where guests are built: namespaces of their own, so that nothing outlives the build.

Mounts, processes and (without root) owners of files belong to a mount, a process and a
user namespace. When the first process in them ends, whatever ended it, the kernel removes
all of it. Without root the user namespace maps guest root to the calling user and the other
guest users to the caller's range in ``/etc/subuid``.
"""

from __future__ import annotations

import os
from pathlib import Path

from wirt.errors import MissingDependency

_SUBORDINATE = (Path("/etc/subuid"), Path("/etc/subgid"))
_RANGE_HINT = (
    "give your account a range, once, as root: "
    "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
)


def enter_command() -> list[str]:
    """Return the argv prefix that runs a program as root of new namespaces.

    Raises MissingDependency when the caller is not root and may not have subordinate ids.
    """
    prefix = ["setpriv", "--pdeathsig", "KILL", "unshare"]
    if os.geteuid() != 0:
        _require_user_namespaces()
        prefix += ["--user", "--map-root-user", "--map-auto"]
    return [*prefix, "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]


def _require_user_namespaces() -> None:
    import pwd
    import shutil

    if not shutil.which("newuidmap"):
        raise MissingDependency(
            "building without root needs newuidmap", hint="apt install uidmap, or build as root"
        )
    if _limit(Path("/proc/sys/user/max_user_namespaces")) == 0 or (
        _limit(Path("/proc/sys/kernel/unprivileged_userns_clone")) == 0
    ):
        raise MissingDependency(
            "this host forbids user namespaces, which building without root needs",
            hint="build as root, or allow them: sysctl kernel.unprivileged_userns_clone=1",
        )
    user = pwd.getpwuid(os.geteuid()).pw_name
    if not all(_has_range(path, user, os.geteuid()) for path in _SUBORDINATE):
        raise MissingDependency(
            f"the account {user} has no subordinate ids, which building without root needs",
            hint=_RANGE_HINT.format(user=user),
        )


def _limit(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _has_range(path: Path, user: str, uid: int) -> bool:
    """Whether ``path`` (name:first:count) grants ``user`` 65,536 ids."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        owner, _, rest = line.partition(":")
        count = rest.rpartition(":")[2]
        if owner in {user, str(uid)} and count.isdigit() and int(count) >= 1 << 16:
            return True
    return False
