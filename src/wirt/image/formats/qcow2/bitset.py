"""Bits of a dirty bitmap: bit n (lowest first in each byte) stands for one granule."""

from __future__ import annotations

from collections.abc import Iterator


def set_bits(bits: bytearray, first: int, after: int) -> None:
    """Set the bits ``first`` to ``after`` - 1; those past the end are ignored."""
    after = min(after, len(bits) * 8)
    if first >= after:
        return
    low, high = first >> 3, (after - 1) >> 3
    head = 0xFF << (first & 7) & 0xFF
    tail = 0xFF >> (7 - (after - 1 & 7))
    if low == high:
        bits[low] |= head & tail
        return
    bits[low] |= head
    bits[low + 1 : high] = b"\xff" * (high - low - 1)
    bits[high] |= tail


def runs(bits: bytes | bytearray, count: int) -> Iterator[tuple[int, int]]:
    """Yield (first, length) of the runs of set bits among the first ``count``."""
    start: int | None = None
    position = 0
    while position < count:
        byte = bits[position >> 3]
        if position & 7 == 0 and byte in {0, 0xFF} and (byte == 0xFF) == (start is not None):
            position = _skip(bits, position >> 3, byte) << 3
            continue
        if byte >> (position & 7) & 1:
            start = position if start is None else start
        elif start is not None:
            yield start, position - start
            start = None
        position += 1
    if start is not None:
        yield start, min(position, count) - start


def _skip(bits: bytes | bytearray, index: int, byte: int) -> int:
    """Return the index of the first byte from ``index`` on that differs from ``byte``."""
    step = bytes([byte]) * 4096
    while bits[index : index + 4096] == step:
        index += 4096
    while index < len(bits) and bits[index] == byte:
        index += 1
    return index
