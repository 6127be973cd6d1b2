"""Quantities as people write them, parsed once at the edge: bytes, durations, rates."""

from __future__ import annotations

import re

from wirt.errors import UsageError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtpe]?)(i?b)?", re.IGNORECASE | re.ASCII)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5, "e": 6}
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?", re.IGNORECASE | re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


def parse_size(text: str, *, default_unit: str = "") -> int:
    """Return the bytes that ``text`` means: ``512M``, ``1.5G``, ``64KiB``, ``4096``.

    Units are powers of 1024, as everywhere in QEMU. ``default_unit`` applies to a bare
    number (``-m 512`` means MiB). Raises UsageError for anything else, also for values
    of 2⁶³ and above.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(
            f"{text[:40]!r} is not a size", hint="write a number and a unit: 512M, 1.5G, 64K"
        )
    number, unit = match[1], match[2].lower() or default_unit.lower()
    scale = 1024 ** _POWER[unit]
    value = int(number) * scale if number.isdigit() else int(float(number) * scale)
    if value >= 1 << 63:
        raise UsageError(f"{text[:40]!r} is too large for a size")
    return value


def format_size(size: int) -> str:
    """Return ``size`` exactly when a unit divides it, else with one decimal: ``1G``, ``1.4M``."""
    for unit in ("E", "P", "T", "G", "M", "K"):
        scale = 1024 ** _POWER[unit.lower()]
        if size >= scale:
            return f"{size // scale}{unit}" if size % scale == 0 else f"{size / scale:.1f}{unit}"
    return str(size)


def format_size_exact(size: int) -> str:
    """Return the shortest text that ``parse_size`` reads back to the same bytes."""
    for unit in ("E", "P", "T", "G", "M", "K"):
        scale = 1024 ** _POWER[unit.lower()]
        if size and size % scale == 0:
            return f"{size // scale}{unit}"
    return str(size)


def parse_duration(text: str) -> float:
    """Return seconds: ``90``, ``1.5s``, ``200ms``, ``5m``, ``1h``. Raises UsageError."""
    match = _TIME.fullmatch(text.strip())
    if not match:
        raise UsageError(
            f"{text[:40]!r} is not a duration", hint="write a number and a unit: 200ms, 90s, 5m, 1h"
        )
    return float(match[1]) * _SECONDS[(match[2] or "s").lower()]
