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
_TAKEN = {65534, 65535}  # nobody, and the 16-bit "no such id"
_FEWEST = 1024


def vm_uid(index: int) -> int:
    """Return a uid (and gid) for machine number ``index``. Raises HostError if none is mapped.

    The range of wirt where this user namespace has it; in a container with fewer ids the
    upper half of its highest block, clear of the ids that the system there gives out.
    """
    return _choose(index, _common(_blocks("uid_map"), _blocks("gid_map")))


def switch_uid() -> int:
    """Return the uid of switches and cables that root starts: no machine has it."""
    return vm_uid(0)


def _choose(index: int, blocks: list[range]) -> int:
    index %= UID_COUNT
    if any(UID_BASE in block and UID_BASE + UID_COUNT - 1 in block for block in blocks):
        return UID_BASE + index
    block = max(blocks, key=lambda block: block.stop, default=range(0))
    half = len(block) // 2
    if half < _FEWEST:
        raise HostError(
            "this container has too few uids to give machines their own",
            hint="map 65,536 of them, or run wirt as an ordinary user",
        )
    uid = block.stop - 1 - index % half
    return uid - half if uid in _TAKEN else uid


def _blocks(name: str) -> list[range]:
    """Return the ids that exist in this user namespace: start inside, outside, count."""
    with open(f"/proc/self/{name}", encoding="ascii") as file:
        rows = [[int(word) for word in line.split()] for line in file]
    return [range(inside, min(inside + count, _UID_SPACE - 1)) for inside, _, count in rows]


def _common(uids: list[range], gids: list[range]) -> list[range]:
    """Return the blocks of numbers that are both a uid and a gid."""
    pairs = [range(max(u.start, g.start), min(u.stop, g.stop)) for u in uids for g in gids]
    return [pair for pair in pairs if pair]


def confinement(uid: int, *, kvm: bool, group: int = 0) -> list[str]:
    """Return the words to put before QEMU's command line.

    With ``uid`` (when root), QEMU becomes that user with no capability and no group but
    the one of /dev/kvm and, for a fork, that of its family (``group``); it can never gain
    privileges either way.
    """
    words = [find_program("setpriv"), "--no-new-privs"]
    if not uid:
        return words
    wanted = [device_group("/dev/kvm") if kvm else 0, group if group != uid else 0]
    listed = ",".join(str(one) for one in wanted if one)
    groups = f"--groups={listed}" if listed else "--clear-groups"
    return [
        *words, f"--reuid={uid}", f"--regid={uid}", groups, "--bounding-set=-all", "--inh-caps=-all"
    ]  # fmt: skip


def device_group(path: str) -> int:
    """Return the group that may use a device; 0 if that is root's or the device is absent."""
    try:
        info = os.stat(path)
    except OSError:
        return 0
    return info.st_gid if info.st_mode & 0o060 == 0o060 else 0


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
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            return parse_status(file.read())
    except OSError as error:
        raise HostError(f"process {pid} is gone") from error


def parse_status(text: str) -> Confinement:
    """Read what proc(5) describes as ``/proc/PID/status``."""
    fields = (line.partition(":") for line in text.splitlines())
    values = {key: rest.split() for key, _, rest in fields}
    return Confinement(
        uid=int(values["Uid"][1]),
        gid=int(values["Gid"][1]),
        groups=tuple(group_name(int(gid)) for gid in values.get("Groups", [])),
        no_new_privileges=values.get("NoNewPrivs") == ["1"],
        seccomp=_SECCOMP.get(values.get("Seccomp", ["0"])[0], "none"),
        capabilities=values["CapEff"][0],
    )


def group_name(gid: int) -> str:
    """Return the name of a group; its number where it has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
