"""Room on the file systems that wirt writes to."""

from __future__ import annotations

import os
from collections.abc import Iterable

from wirt.host.finding import Finding
from wirt.units import GIB, MIB, format_size

_SHORT = 4 * GIB
_NONE = 64 * MIB
SOCKETS = MIB
"""What a directory of sockets needs."""


def space(places: Iterable[str], *, short: int = _SHORT, none: int = _NONE) -> list[Finding]:
    """Examine the file system of each place; one that does not exist yet, by its parent.

    Below ``short`` bytes is a warning, below ``none`` no machine can run.
    """
    return [_space(place, short, none) for place in places]


def _space(place: str, short: int, none: int) -> Finding:
    there = os.path.abspath(place)
    while not os.path.exists(there):
        there = os.path.dirname(there)
    facts = os.statvfs(there)
    return judge(
        place,
        free=facts.f_bavail * facts.f_frsize,
        inodes=facts.f_favail if facts.f_files else None,
        writable=os.access(there, os.W_OK | os.X_OK) and not facts.f_flag & os.ST_RDONLY,
        short=short,
        none=none,
    )


def judge(
    place: str,
    *,
    free: int,
    inodes: int | None,
    writable: bool,
    short: int = _SHORT,
    none: int = _NONE,
) -> Finding:
    """Say whether images fit. ``free`` in bytes; ``inodes`` is None where there is no limit."""
    ident, title = f"space:{place}", f"room in {place}"
    detail = f"{format_size(free // MIB * MIB)} free"
    if not writable:
        cure = "set WIRT_HOME to a directory of yours"
        return Finding(ident, title, "fail", f"{detail}, but you may not write there", cure)
    if inodes is not None and inodes < 100:
        return Finding(ident, title, "fail", f"{detail}, but no room for more files", _CURE)
    if free < short:
        return Finding(ident, title, "warn" if free >= none else "fail", detail, _CURE)
    return Finding(ident, title, "ok", detail)


_CURE = "remove what is not needed: wirt images, wirt ls; or set WIRT_HOME to another disk"
