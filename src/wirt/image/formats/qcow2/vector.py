"""The large-table paths, with numpy: imported only when there is much to look at."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator

import numpy as np

from wirt.errors import CorruptImage
from wirt.image.formats.qcow2.header import Header
from wirt.image.formats.qcow2.l2 import (
    COMPRESSED,
    COPIED,
    NORMAL,
    OFFSET,
    PACKED,
    UNALLOCATED,
    ZERO,
    ZERO_ALLOCATED,
    ZERO_PLAIN,
    Run,
)


def table_runs(words: array[int], header: Header, start: int, stop: int) -> Iterator[Run]:
    """Yield the runs of one standard L2 table, like ``Mapping._cluster_runs`` but merged."""
    bits, size = header.cluster_bits, header.cluster_size
    per_table = 1 << header.l2_bits
    low = start >> bits & per_table - 1
    high = low + (((stop - 1) >> bits) - (start >> bits)) + 1
    entries = np.frombuffer(words, dtype=np.uint64)[low:high]
    hosts = entries & np.uint64(OFFSET)
    kinds = _kinds(entries, hosts, header)
    plain = kinds != PACKED
    if bool(((hosts & np.uint64(size - 1)) != 0)[plain].any()):
        raise CorruptImage("a cluster is not aligned")
    placed = (kinds == NORMAL) | (kinds == ZERO_ALLOCATED)
    breaks = kinds[1:] != kinds[:-1]
    breaks |= placed[1:] & (hosts[1:] != hosts[:-1] + np.uint64(size))
    breaks |= ~plain[1:]
    firsts = [0, *(np.flatnonzero(breaks) + 1).tolist(), high - low]
    base = start >> bits << bits
    for first, after in itertools.pairwise(firsts):
        offset = max(start, base + (first << bits))
        end = min(stop, base + (after << bits))
        kind = int(kinds[first])
        host = int(entries[first]) if kind == PACKED else 0
        if placed[first]:
            host = int(hosts[first]) + offset - (base + (first << bits))
        yield Run(offset, end - offset, kind, host)


def _kinds(entries: np.ndarray, hosts: np.ndarray, header: Header) -> np.ndarray:
    has_host = hosts != 0
    if header.has_data_file:
        has_host |= (entries & np.uint64(COPIED)) != 0
    kinds = np.where(has_host, np.uint8(NORMAL), np.uint8(UNALLOCATED))
    packed = (entries & np.uint64(COMPRESSED)) != 0
    zero = ((entries & np.uint64(ZERO)) != 0) & ~packed
    if bool(zero.any()):
        if header.version < 3:
            raise CorruptImage("a zero cluster in a version 2 image")
        kinds[zero & has_host] = ZERO_ALLOCATED
        kinds[zero & ~has_host] = ZERO_PLAIN
    kinds[packed] = PACKED
    return kinds
