"""What the running kernel offers: modules, user namespaces, and what confines processes."""

from __future__ import annotations

import errno
import os
from typing import Literal

from wirt.errors import WirtError
from wirt.host.finding import Finding, Status
from wirt.host.process import find_program, run

_NOBODY = 65534
_LANDLOCK_CREATE_RULESET = 444  # the same number on every architecture
_LANDLOCK_VERSION = 1
_SUBORDINATE_IDS = 65536

ModuleState = Literal["loaded", "available", "absent"]


def read_line(path: str) -> str:
    """Return a small file of /proc or /sys without its newline; empty if it is not there."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def module_state(name: str) -> ModuleState:
    """Return whether a kernel module is loaded or built in, could be loaded, or is absent."""
    if os.path.isdir(f"/sys/module/{name}"):
        return "loaded"
    directory = f"/lib/modules/{os.uname().release}"
    if _lists(f"{directory}/modules.builtin", name):
        return "loaded"
    return "available" if _lists(f"{directory}/modules.dep", name) else "absent"


def _lists(path: str, module: str) -> bool:
    """True if a list of module files (``kernel/net/tun.ko.xz: …``) has the module."""
    files = (line.partition(":")[0] for line in read_line(path).splitlines())
    names = (os.path.basename(file).partition(".")[0].replace("-", "_") for file in files)
    return module in names


def module_cure(name: str) -> str:
    """Return the step that makes the module's devices appear."""
    if module_state(name) == "absent":
        return f"boot a kernel that has {name}: this one ({os.uname().release}) has not"
    return f"modprobe {name}"


def kernel() -> list[Finding]:
    """Examine namespaces and what confines QEMU."""
    release = os.uname().release
    return [
        Finding("kernel", "kernel", "info", f"Linux {release} on {os.uname().machine}"),
        _user_namespaces(),
        _subordinate_ids(),
        _landlock(),
        _seccomp(),
        _ptrace(),
        _userfaultfd(),
    ]


def _user_namespaces() -> Finding:
    """Really make one, as an ordinary user: limits hide in many places."""
    line = [find_program("unshare"), "--user", "--map-root-user", "--net", "true"]
    if os.geteuid() == 0:
        ids = [f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
        line = [find_program("setpriv"), *ids, *line]
    try:
        run(line, timeout=10)
    except WirtError as error:
        return Finding(
            "user-namespaces", "user namespaces", "warn",
            f"an ordinary user cannot make one: {error.message}",
            _namespace_cure(),
        )  # fmt: skip
    return Finding("user-namespaces", "user namespaces", "ok", "ordinary users can make them")


def _namespace_cure() -> str:
    for name, wanted in (
        ("kernel.unprivileged_userns_clone", "1"),
        ("kernel.apparmor_restrict_unprivileged_userns", "0"),
        ("user.max_user_namespaces", "65536"),
    ):
        value = read_line("/proc/sys/" + name.replace(".", "/"))
        if value and (value == "0") == (wanted != "0"):
            return f"sysctl {name}={wanted}"
    return "allow user namespaces, or run wirt as root"


def _subordinate_ids() -> Finding:
    import pwd

    title, ident = "subordinate ids", "subordinate-ids"
    if os.geteuid() == 0:
        return Finding(ident, title, "info", "root builds guests without them")
    try:
        find_program("newuidmap")
    except WirtError as error:
        return Finding(ident, title, "warn", f"{error.message}: no building of guests", error.hint)
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = str(os.geteuid())
    for path in ("/etc/subuid", "/etc/subgid"):
        if subordinate_count(read_line(path), user, os.geteuid()) < _SUBORDINATE_IDS:
            return Finding(
                ident, title, "warn", f"{path} gives {user} no 65,536 ids: no building of guests",
                "as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 " + user,
            )  # fmt: skip
    return Finding(ident, title, "ok", f"newuidmap is there, and {user} has a range")


def subordinate_count(text: str, user: str, uid: int) -> int:
    """Return how many ids the largest range of ``user`` in a subuid(5) file has."""
    counts = [0]
    for line in text.splitlines():
        owner, _, rest = line.partition(":")
        count = rest.rpartition(":")[2].strip()
        if owner in {user, str(uid)} and count.isascii() and count.isdigit():
            counts.append(int(count[:10]))
    return max(counts)


def landlock_abi() -> int:
    """Return the version of Landlock that the kernel speaks; 0 if it does not."""
    return max(0, _landlock_version()[0])


def _landlock_version() -> tuple[int, int]:
    """Return what landlock_create_ruleset(2) answers when asked for its version, and errno."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(
        ctypes.c_long(_LANDLOCK_CREATE_RULESET), None, ctypes.c_size_t(0),
        ctypes.c_uint32(_LANDLOCK_VERSION),
    )  # fmt: skip
    return int(version), ctypes.get_errno()


def _landlock() -> Finding:
    abi, error = _landlock_version()
    if abi > 0:
        return Finding("landlock", "Landlock", "ok", f"ABI {abi}")
    off = error == errno.EOPNOTSUPP
    cure = "add landlock to the list lsm= of the kernel's command line" if off else ""
    detail = "switched off at boot" if off else "not in this kernel"
    return Finding("landlock", "Landlock", "info", detail, cure)


def _seccomp() -> Finding:
    actions = read_line("/proc/sys/kernel/seccomp/actions_avail").split()
    if "kill_process" in actions:
        return Finding("seccomp", "seccomp", "ok", "the kernel filters system calls")
    return Finding(
        "seccomp", "seccomp", "warn", "the kernel cannot filter QEMU's system calls",
        "boot a kernel with CONFIG_SECCOMP_FILTER",
    )  # fmt: skip


_PTRACE: dict[str, tuple[Status, str]] = {
    "0": ("info", "a process may read the memory of others of the same user"),
    "1": ("ok", "processes may read the memory of their children only"),
    "2": ("ok", "only root may read the memory of other processes"),
    "3": ("ok", "nobody may read the memory of other processes"),
}


def _ptrace() -> Finding:
    scope = read_line("/proc/sys/kernel/yama/ptrace_scope")
    status, detail = _PTRACE.get(scope, ("info", "Yama is not in this kernel"))
    cure = "sysctl kernel.yama.ptrace_scope=1" if scope == "0" else ""
    return Finding("ptrace", "ptrace", status, detail, cure)


def _userfaultfd() -> Finding:
    """Memory that arrives on demand (postcopy, fork) needs it with faults of the kernel too."""
    title = "userfaultfd"
    if os.geteuid() == 0 or read_line("/proc/sys/vm/unprivileged_userfaultfd") == "1":
        return Finding(title, title, "ok", "usable, also for faults inside the kernel")
    if os.access("/dev/userfaultfd", os.R_OK | os.W_OK):
        return Finding(title, title, "ok", "usable through /dev/userfaultfd")
    if not read_line("/proc/sys/vm/unprivileged_userfaultfd"):
        cure = "boot a kernel with CONFIG_USERFAULTFD"
        return Finding(title, title, "info", "not in this kernel: no postcopy migration", cure)
    return Finding(
        title, title, "info", "for root only: no postcopy migration by an ordinary user",
        "sysctl vm.unprivileged_userfaultfd=1",
    )  # fmt: skip
