"""The snapshot table: one record for each internal snapshot.

A record (big-endian, padded to 8 bytes)::

    0   L1 offset      12  length of the id     16  date, s   24  VM clock, ns
    8   L1 entries     14  length of the name   20  date, ns  32  VM state size (32 bits)
    36  length of the extra data, which follows: 0 VM state size (64 bits), 8 virtual
        size, 16 instruction count; then the id and the name
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import msgspec

from wirt.errors import CorruptImage, OutOfBounds
from wirt.image.base import SnapshotInfo, Storage
from wirt.image.formats.qcow2.header import MAX_L1_BYTES, Header

_RECORD = struct.Struct(">QIHHIIQII")
_EXTRA = struct.Struct(">QQQ")
_MAX_EXTRA = 1024
_MAX_TABLE = 64 << 20
_NO_ICOUNT = (1 << 64) - 1


class Snapshot(msgspec.Struct):
    l1_offset: int
    l1_size: int
    id: str
    name: str
    date_seconds: int
    date_nanoseconds: int
    vm_clock: int
    vm_state_size: int
    virtual_size: int
    icount: int = _NO_ICOUNT
    extra_tail: bytes = b""

    def pack(self) -> bytes:
        name, ident = self.name.encode("utf-8", "surrogateescape"), self.id.encode()
        extra = _EXTRA.pack(self.vm_state_size, self.virtual_size, self.icount) + self.extra_tail
        record = _RECORD.pack(
            self.l1_offset,
            self.l1_size,
            len(ident),
            len(name),
            self.date_seconds,
            self.date_nanoseconds,
            self.vm_clock,
            min(self.vm_state_size, 0xFFFF_FFFF),
            len(extra),
        )
        packed = record + extra + ident + name
        return packed + bytes(-len(packed) % 8)

    def describe(self) -> SnapshotInfo:
        return SnapshotInfo(
            id=self.id,
            name=self.name,
            vm_state_size=self.vm_state_size,
            date_seconds=self.date_seconds,
            date_nanoseconds=self.date_nanoseconds,
            vm_clock_nanoseconds=self.vm_clock,
            virtual_size=self.virtual_size,
            icount=None if self.icount == _NO_ICOUNT else self.icount,
        )


def pack_snapshots(snapshots: Iterable[Snapshot]) -> bytes:
    return b"".join(snapshot.pack() for snapshot in snapshots)


def read_snapshots(storage: Storage, header: Header) -> tuple[list[Snapshot], int]:
    """Return the snapshots and the table's length in bytes. Raises CorruptImage."""
    found = []
    window = _Window(storage, header.snapshots_offset)
    for _ in range(header.snapshot_count):
        found.append(_read_record(window, header))
        if window.position > _MAX_TABLE:
            raise OutOfBounds("the snapshot table is larger than 64 MiB")
    return found, window.position


class _Window:
    """Sequential bytes of a storage, read in pieces."""

    def __init__(self, storage: Storage, offset: int) -> None:
        self._storage = storage
        self._offset = offset
        self._data = b""
        self._start = 0
        self.position = 0

    def take(self, length: int) -> bytes:
        low = self.position - self._start
        if low + length > len(self._data):
            self._start, low = self.position, 0
            self._data = self._storage.pread(self._offset + self.position, max(length, 65536))
        self.position += length
        piece = self._data[low : low + length]
        if len(piece) < length:
            raise CorruptImage("the snapshot table is truncated", offset=self._offset)
        return piece


def _read_record(window: _Window, header: Header) -> Snapshot:
    values = _RECORD.unpack(window.take(_RECORD.size))
    l1_offset, l1_size, id_length, name_length, seconds, nanoseconds, clock, state, more = values
    if more > _MAX_EXTRA:
        raise CorruptImage("too much extra data in a snapshot")
    if l1_size * 8 > MAX_L1_BYTES:
        raise CorruptImage("a snapshot's L1 table is too large")
    if l1_offset % header.cluster_size or l1_offset >> 56:
        raise CorruptImage("a snapshot's L1 table has an invalid offset", offset=l1_offset)
    extra = window.take(more)
    size, icount = header.size, _NO_ICOUNT
    if more >= 8:
        state = int.from_bytes(extra[:8])
    if more >= 16:
        size = int.from_bytes(extra[8:16])
    if more >= 24:
        icount = int.from_bytes(extra[16:24])
    ident = window.take(id_length).decode("utf-8", "replace")
    name = window.take(name_length).decode("utf-8", "surrogateescape")
    padding = -(_RECORD.size + more + id_length + name_length) % 8
    window.position += padding
    return Snapshot(
        l1_offset,
        l1_size,
        ident,
        name,
        seconds,
        nanoseconds,
        clock,
        state,
        size,
        icount,
        extra[24:],
    )
