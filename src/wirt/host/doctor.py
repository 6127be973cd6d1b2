"""Everything that ``wirt doctor`` looks at. Nothing on the host is changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from wirt.errors import WirtError
from wirt.host.acceleration import acceleration
from wirt.host.cgroup import cgroups
from wirt.host.device import devices
from wirt.host.finding import Finding
from wirt.host.kernel import kernel
from wirt.host.memory import memory
from wirt.host.programs import programs
from wirt.host.space import SOCKETS, space

Check = Callable[[], list[Finding]]


def examine(
    *,
    cache_dir: str,
    places: Sequence[str],
    sockets: str = "",
    binary: str = "qemu-system-x86_64",
) -> list[Finding]:
    """Return what this host can do for machines, in the order a person reads it.

    ``places`` are directories for images; ``sockets`` is one that needs little room.
    ``cache_dir`` keeps what is slow to find
    out (it need not exist). No error escapes: what cannot be examined is a finding too.
    """
    checks: tuple[tuple[str, Check], ...] = (
        ("acceleration", partial(acceleration, cache_dir)),
        ("programs", partial(programs, binary, cache_dir)),
        ("memory", memory),
        ("space", partial(space, places)),
        ("space", partial(space, [sockets] if sockets else [], short=SOCKETS, none=SOCKETS)),
        ("devices", devices),
        ("cgroup", cgroups),
        ("kernel", kernel),
    )
    return [finding for name, check in checks for finding in _guarded(name, check)]


def _guarded(name: str, check: Check) -> list[Finding]:
    try:
        return check()
    except WirtError as error:
        return [Finding(name, name, "warn", error.message, error.hint)]
    except OSError as error:
        return [Finding(name, name, "warn", f"cannot be examined: {error}")]


def worst(findings: Sequence[Finding]) -> str:
    """Return the gravest status among the findings; ``ok`` when there are none."""
    order = ("ok", "info", "warn", "fail")
    return max((finding.status for finding in findings), key=order.index, default="ok")
