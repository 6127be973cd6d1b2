"""Making guest ranges read as zeros, and giving their clusters back."""

from __future__ import annotations

from wirt.image.formats.qcow2.l2 import (
    ALL_ALLOCATED,
    ALL_ZERO,
    COMPRESSED,
    COPIED,
    ZERO,
    Table,
)
from wirt.image.formats.qcow2.writer import Writer

_CHUNK = 1 << 20


def write_zeroes(writer: Writer, offset: int, length: int, size: int, *, unmap: bool) -> None:
    """Make a range read as zeros. ``size`` is the disk's: its last cluster counts as whole."""
    header = writer.volume.header
    small = header.subcluster_size
    end = offset + length
    first = -(-offset // small) * small
    last = end // small * small
    if end == size:
        last = -(-end // small) * small
    if first >= last or (header.version < 3 and writer.reader.backing is not None):
        writer.write_zero_bytes(offset, length)
        return
    if first > offset:
        writer.write_zero_bytes(offset, first - offset)
    if last < end:
        writer.write_zero_bytes(last, end - last)
    if header.raw_data_file:
        _zero_data_file(writer, first, min(last, size) - first)
    _zero_clusters(writer, first, last, unmap=unmap and not header.raw_data_file)


def _zero_data_file(writer: Writer, offset: int, length: int) -> None:
    """A raw data file shows the disk by itself: its bytes must be zeros too."""
    for start in range(offset, offset + length, _CHUNK):
        writer.volume.write_data(start, bytes(min(_CHUNK, offset + length - start)))


def _zero_clusters(writer: Writer, offset: int, end: int, *, unmap: bool) -> None:
    mapping = writer.volume.mapping
    size = writer.volume.header.cluster_size
    bare = writer.reader.backing is None and not writer.volume.header.backing_name
    while offset < end:
        stop = min(end, (offset >> mapping.shift) + 1 << mapping.shift)
        if bare and not mapping.l2_offset(offset >> mapping.shift):
            offset = stop
            continue
        table = writer.table_for(offset)
        while offset < stop:
            part = min(size - (offset & size - 1), stop - offset)
            if mapping.stride == 2:
                _zero_extended(writer, table, offset, part, unmap=unmap)
            else:
                _zero_standard(writer, table, offset, unmap=unmap)
            offset += part
        writer.volume.relieve()


def _zero_standard(writer: Writer, table: Table, offset: int, *, unmap: bool) -> None:
    slot = writer.slot_of(offset)
    old = table.words[slot]
    version2 = writer.volume.header.version < 3
    if not unmap and not version2 and not old & COMPRESSED and old & COPIED:
        new = old | ZERO
    else:
        new = 0 if version2 else ZERO
        if old != new:
            writer.give_back(old)
    if new != old:
        table.words[slot] = new
        table.touch(slot, slot + 1)


def _zero_extended(writer: Writer, table: Table, offset: int, length: int, *, unmap: bool) -> None:
    header = writer.volume.header
    slot = writer.slot_of(offset)
    entry, bitmap = table.words[slot], table.words[slot + 1]
    small, inside = header.subcluster_size, offset & header.cluster_size - 1
    mask = (1 << length // small) - 1 << inside // small
    if entry & COMPRESSED and mask != ALL_ALLOCATED:
        writer.write_zero_bytes(offset, length)
        return
    new = (bitmap | mask << 32) & ~mask
    keeps = not unmap and entry & COPIED and not entry & COMPRESSED
    if mask == ALL_ALLOCATED or (new == ALL_ZERO and not entry & COMPRESSED):
        new = ALL_ZERO
        if not keeps:
            writer.give_back(entry)
            entry = 0
    table.words[slot], table.words[slot + 1] = entry, new
    table.touch(slot, slot + 2)
