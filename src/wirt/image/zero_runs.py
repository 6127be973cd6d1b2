"""Where the zeros are in a buffer, at the speed of the C library."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache


def data_runs(data: memoryview, unit: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the runs of ``data`` that are not zeros, in whole units.

    ``unit`` is a power of two; a last part shorter than it counts as a unit. Only units
    that begin with zeros are looked at in full: one slice finds them all.
    """
    start = 0
    for at in _zero_units(data, unit):
        if at > start:
            yield start, at
        start = at + unit
    if start < len(data):
        yield start, len(data)


def _zero_units(data: memoryview, unit: int) -> Iterator[int]:
    # As words where that is possible: many a unit begins with one zero byte, few with eight.
    width = 8 if data and (unit | len(data)) % 8 == 0 else 1
    firsts = bytes(data.cast("Q")[:: unit // 8] if width == 8 else data[::unit])
    zero = bytes(width)
    found = firsts.find(zero)
    while found >= 0:
        index, inside = divmod(found, width)
        at = index * unit
        if not inside and is_zero(data[at : at + unit]):
            yield at
        found = firsts.find(zero, (index + 1) * width)


def is_zero(data: memoryview) -> bool:
    """Return whether every byte is zero."""
    if not data:
        return True
    if data[0] or data[-1] or data[len(data) // 2]:
        return False
    # Comparing bytes is one memcmp; a memoryview would be compared item by item.
    return bytes(data) == _zeros(len(data))


@cache
def _zeros(length: int) -> bytes:
    return bytes(length)
