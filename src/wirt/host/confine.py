"""What confines a QEMU process: how it is put on, and how it is read back."""

from __future__ import annotations

import grp
import os

import msgspec

from wirt.errors import HostError
from wirt.host.process import find_program

UID_BASE = 1_900_000_000
UID_COUNT = 65536
"""The range of uids for machines: far from those of people, services and containers."""

_UID_SPACE = 1 << 32


def vm_uid(index: int) -> int:
    """Return the ``index``-th uid of the range. Raises HostError where none is mapped.

    In a container with few uids the top of the highest mapped block serves instead.
    """
    blocks = _uid_blocks()
    if any(start <= UID_BASE and end >= UID_BASE + UID_COUNT for start, end in blocks):
        return UID_BASE + index
    start, end = max(blocks, key=lambda block: block[1])
    if end - start < 2 * UID_COUNT // 64:
        raise HostError(
            "this container has too few uids to give machines their own",
            hint="map more of them, or run wirt as an ordinary user",
        )
    return end - 1 - index % ((end - start) // 2)


def _uid_blocks() -> list[tuple[int, int]]:
    blocks = []
    with open("/proc/self/uid_map", encoding="ascii") as file:
        for line in file:
            inside, _, count = (int(word) for word in line.split())
            blocks.append((inside, min(inside + count, _UID_SPACE - 1)))
    return blocks or [(0, 1)]


def confinement(uid: int, *, kvm: bool) -> list[str]:
    """Return the words to put before QEMU's command line.

    With ``uid`` (when root), QEMU becomes that user with no capability and no group but
    the one of /dev/kvm; it can never gain privileges either way.
    """
    words = [find_program("setpriv"), "--no-new-privs"]
    if not uid:
        return words
    group = _kvm_group() if kvm else 0
    groups = f"--groups={group}" if group else "--clear-groups"
    return [
        *words, f"--reuid={uid}", f"--regid={uid}", groups, "--bounding-set=-all", "--inh-caps=-all"
    ]  # fmt: skip


def _kvm_group() -> int:
    try:
        group = os.stat("/dev/kvm").st_gid
    except OSError:
        return 0
    return group


class Confinement(msgspec.Struct, frozen=True):
    """What the kernel says of a running process."""

    uid: int
    gid: int
    groups: tuple[str, ...]
    no_new_privileges: bool
    seccomp: str
    """``none``, ``strict`` or ``filter``."""
    capabilities: str
    """The effective set, hexadecimal."""


_SECCOMP = {"0": "none", "1": "strict", "2": "filter"}


def read_confinement(pid: int) -> Confinement:
    """Return what confines the process. Raises HostError if it is gone."""
    values: dict[str, list[str]] = {}
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, rest = line.partition(":")
                values[key] = rest.split()
    except OSError as error:
        raise HostError(f"process {pid} is gone") from error
    return Confinement(
        uid=int(values["Uid"][1]),
        gid=int(values["Gid"][1]),
        groups=tuple(_group_name(int(gid)) for gid in values["Groups"]),
        no_new_privileges=values.get("NoNewPrivs") == ["1"],
        seccomp=_SECCOMP.get(values.get("Seccomp", ["0"])[0], "none"),
        capabilities=values["CapEff"][0],
    )


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
