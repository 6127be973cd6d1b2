"""Refcounts of 1 to 64 bits. Widths below a byte fill it from the lowest bit up."""

from __future__ import annotations

from array import array
from functools import cache

from wirt.image.formats.qcow2.words import words_from, words_to

_TYPECODE = {3: "B", 4: "H", 5: "I", 6: "Q"}


@cache
def _spread(order: int) -> list[bytes]:
    width, mask = 1 << order, (1 << (1 << order)) - 1
    return [bytes(byte >> shift & mask for shift in range(0, 8, width)) for byte in range(256)]


def unpack_counts(raw: bytes, order: int) -> array[int]:
    """Return the counts in ``raw``; ``order`` is log2 of their width in bits."""
    if order >= 3:
        return words_from(raw, _TYPECODE[order])
    if not any(raw):
        return array("B", bytes(len(raw) << (3 - order)))
    table = _spread(order)
    return array("B", b"".join(table[byte] for byte in raw))


def pack_counts(counts: array[int], order: int) -> bytes:
    if order >= 3:
        return words_to(counts)
    per_byte = 8 >> order
    parts = [counts[i::per_byte] for i in range(per_byte)]
    packed = bytearray(len(counts) // per_byte)
    for place, part in enumerate(parts):
        for index, value in enumerate(part):
            packed[index] |= value << (place << order)
    return bytes(packed)
