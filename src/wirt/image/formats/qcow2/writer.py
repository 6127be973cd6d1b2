"""Writing guest bytes: in place where a cluster is ours alone, else into a new one."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from wirt.errors import ImageError, OutOfBounds, UnsupportedImage
from wirt.image.formats.qcow2.compressed import Packer, packed_extent, set_packed
from wirt.image.formats.qcow2.guard import ACTIVE_L2
from wirt.image.formats.qcow2.l2 import (
    ALL_ALLOCATED,
    COMPRESSED,
    COPIED,
    NORMAL,
    OFFSET,
    UNALLOCATED,
    ZERO,
    Table,
)
from wirt.image.formats.qcow2.reader import Cipher, Reader
from wirt.image.formats.qcow2.volume import Volume

Bytes = bytes | bytearray | memoryview
_ZERO_CHUNK = 1 << 20


class Writer:
    """Changes the active mapping. Its caller holds the lock and commits."""

    def __init__(self, volume: Volume, reader: Reader) -> None:
        self.volume = volume
        self.reader = reader
        self.encipher: Cipher | None = None
        header = volume.header
        self._bits, self._size = header.cluster_bits, header.cluster_size
        self._small = header.subcluster_size
        self._stride = volume.mapping.stride
        self._packer: Packer | None = None

    # Tables

    def table_for(self, offset: int) -> Table:
        """Return the L2 table of a guest offset, made or copied so that it may be changed."""
        mapping, refcounts = self.volume.mapping, self.volume.refcounts
        index = offset >> mapping.shift
        if index >= len(mapping.l1.words):
            raise OutOfBounds("a write beyond the L1 table", offset=offset)
        word = mapping.l1.words[index]
        old = mapping.table(index)
        if old is not None and word & COPIED:
            return old
        words = array("Q", old.words) if old else array("Q", bytes(self._size))
        place = refcounts.allocate_exact(1) << self._bits
        self.volume.guard.add(ACTIVE_L2, place)
        table = mapping.add_table(index, place, words)
        if old is not None:
            self.volume.guard.drop(old.offset)
            self.volume.release(old.offset, 1)
        return table

    def slot_of(self, offset: int) -> int:
        """Return the word index of a guest offset's entry in its L2 table."""
        return (offset >> self._bits & self.volume.mapping.per_table - 1) * self._stride

    def _room(self, offset: int, length: int) -> int:
        """Bound ``length`` to the end of the offset's L2 table."""
        reach = 1 << self.volume.mapping.shift
        return min(length, reach - (offset & reach - 1))

    # Data

    def write(self, offset: int, data: Bytes) -> None:
        view = memoryview(data).cast("B")
        if self.encipher is not None:
            offset, view = self._whole_sectors(offset, view)
        while len(view):
            table = self.table_for(offset)
            room = self._room(offset, len(view))
            host, span = self._in_place(table, offset, room)
            if span:
                self._write_host(offset, host, view[:span])
            else:
                span = self._write_new(table, offset, view[:room])
            offset += span
            view = view[span:]
        self.volume.relieve()

    def _whole_sectors(self, offset: int, view: memoryview) -> tuple[int, memoryview]:
        """Only whole sectors can be enciphered: fill up with what the guest sees."""
        before, after = offset & 511, -(offset + len(view)) & 511
        head = self.reader.read_padded(offset - before, before)
        tail = self.reader.read_padded(offset + len(view), after)
        return offset - before, memoryview(b"".join((head, view, tail)))

    def _write_host(self, offset: int, host: int, data: Bytes) -> None:
        if self.encipher is not None:
            data = self.encipher(offset, host, bytes(data))
        self.volume.write_data(host, data)

    def _in_place(self, table: Table, offset: int, length: int) -> tuple[int, int]:
        """Return (host offset, bytes) that may be overwritten where they lie."""
        words, slot, stride = table.words, self.slot_of(offset), self._stride
        entry = words[slot]
        if not self._is_ours(entry) or (stride == 1 and entry & ZERO):
            return 0, 0
        inside = offset & self._size - 1
        host = (entry & OFFSET) + inside
        if stride == 2 and words[slot + 1] != ALL_ALLOCATED:
            return host, min(length, self._allocated_subclusters(words[slot + 1], inside))
        span = self._size - inside
        while span < length and words[slot + stride] == entry + self._size:
            slot, entry = slot + stride, entry + self._size
            if stride == 2 and words[slot + 1] != ALL_ALLOCATED:
                break
            span += self._size
        return host, min(span, length)

    def _is_ours(self, entry: int) -> bool:
        """True if the entry has a host cluster that nothing else uses."""
        if entry & (COPIED | COMPRESSED) != COPIED:
            return False
        return bool(entry & OFFSET) or self.volume.header.has_data_file

    def _allocated_subclusters(self, bitmap: int, inside: int) -> int:
        index = start = inside // self._small
        while index < 32 and bitmap >> index & 1:
            index += 1
        return 0 if index == start else index * self._small - inside

    def _write_new(self, table: Table, offset: int, view: memoryview) -> int:
        inside = offset & self._size - 1
        if self._stride == 2 and (
            inside or len(view) < self._size or self._has_host(table, offset)
        ):
            return self._write_part(table, offset, view[: self._size - inside])
        return self._write_clusters(table, offset, view)

    def _has_host(self, table: Table, offset: int) -> bool:
        return self._is_ours(table.words[self.slot_of(offset)])

    def _write_clusters(self, table: Table, offset: int, view: memoryview) -> int:
        """Write whole clusters around the range, filled up with what the guest sees now."""
        inside, slot = offset & self._size - 1, self.slot_of(offset)
        want = -(-(inside + len(view)) // self._size)
        if self._stride == 2:
            want = len(view) // self._size
        host, count, new = self._hosts(table, slot, offset - inside, want)
        length = min(len(view), count * self._size - inside)
        try:
            data = self._filled(offset, view[:length])
            self._write_host(offset - inside, host, data)
        except ImageError:
            if new:
                self.volume.release(host, count * self._size)
            raise
        self.link(table, slot, host, count, keep_old=not new)
        return length

    def _filled(self, offset: int, view: memoryview) -> Bytes:
        """Return the bytes of the whole clusters that the range touches."""
        before = offset & self._size - 1
        end = offset + len(view)
        after = -end & self._size - 1
        if not before and not after:
            return view
        head = self.reader.read_padded(offset - before, before)
        return b"".join((head, view, self.reader.read_padded(end, after)))

    def _hosts(self, table: Table, slot: int, guest: int, want: int) -> tuple[int, int, bool]:
        """Return (host offset, clusters, newly allocated) for entries that cannot be reused."""
        words, stride = table.words, self._stride
        first = words[slot]
        if stride == 1 and self._is_ours(first):
            # Allocated in advance, reading as zeros until now.
            count = 1
            while count < want and words[slot + count] == first + count * self._size:
                count += 1
            return first & OFFSET, count, False
        count = 1
        while count < want and not self._is_ours(words[slot + count * stride]):
            count += 1
        if self.volume.header.has_data_file:
            return guest, count, False
        cluster, count = self.volume.refcounts.allocate(count)
        return cluster << self._bits, count, True

    def link(self, table: Table, slot: int, host: int, count: int, *, keep_old: bool) -> None:
        """Point ``count`` entries at consecutive host clusters; old ones are given back."""
        words, stride = table.words, self._stride
        for index in range(slot, slot + count * stride, stride):
            if not keep_old or words[index] & COMPRESSED:
                self.give_back(words[index])
            words[index] = host | COPIED
            if stride == 2:
                words[index + 1] = ALL_ALLOCATED
            host += self._size
        table.touch(slot, slot + count * stride)

    def give_back(self, entry: int) -> None:
        """Release what an L2 entry refers to."""
        if entry & COMPRESSED:
            self.volume.release(*packed_extent(entry, self._bits))
        elif entry & OFFSET and not self.volume.header.has_data_file:
            self.volume.release(entry & OFFSET, self._size)

    def _write_part(self, table: Table, offset: int, view: memoryview) -> int:
        """Write into one cluster with subclusters, allocating only those touched."""
        slot, inside = self.slot_of(offset), offset & self._size - 1
        entry, bitmap = table.words[slot], table.words[slot + 1]
        if not self._is_ours(entry) and (entry & COMPRESSED or entry & OFFSET):
            return self._write_clusters_one(table, offset, view)
        before, after = inside % self._small, -(offset + len(view)) % self._small
        low = inside - before
        count = (before + len(view) + after) // self._small
        data = b"".join(
            (
                self.reader.read_padded(offset - before, before),
                view,
                self.reader.read_padded(offset + len(view), after),
            )
        )
        host, new = entry & OFFSET, not self._is_ours(entry)
        if new:
            host = self._one_host(offset - inside)
        self._write_host(offset - before, host + low, data)
        mask = (1 << count) - 1 << low // self._small
        table.words[slot] = host | COPIED
        table.words[slot + 1] = (bitmap | mask) & ~(mask << 32)
        table.touch(slot, slot + 2)
        return len(view)

    def _write_clusters_one(self, table: Table, offset: int, view: memoryview) -> int:
        """Replace one shared or compressed cluster by a full copy of our own."""
        host = self._one_host(offset & ~(self._size - 1))
        self._write_host(offset & ~(self._size - 1), host, self._filled(offset, view))
        self.link(table, self.slot_of(offset), host, 1, keep_old=False)
        return len(view)

    def _one_host(self, guest: int) -> int:
        if self.volume.header.has_data_file:
            return guest
        return self.volume.refcounts.allocate(1)[0] << self._bits

    # Without data

    def allocate(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Allocate whole clusters for data that the caller writes itself."""
        end = offset + length
        while offset < end:
            table = self.table_for(offset)
            room = self._room(offset, -(-(end - offset) // self._size) * self._size)
            host, span = self._in_place(table, offset, room)
            if not span:
                slot = self.slot_of(offset)
                host, count, new = self._hosts(table, slot, offset, room >> self._bits)
                self.link(table, slot, host, count, keep_old=not new)
                span = count << self._bits
            self.volume.note_data_written(host + span)
            yield offset, host, min(span, end - offset)
            offset += span
            self.volume.relieve()

    def write_packed(self, offset: int, packed: bytes) -> None:
        """Store one compressed cluster."""
        if self.volume.header.has_data_file or self.encipher is not None:
            raise UnsupportedImage("compressed clusters need a plain image file")
        if self._packer is None:
            self._packer = Packer(self.volume)
        table, slot = self.table_for(offset), self.slot_of(offset)
        entry = self._packer.place(packed)
        self.give_back(table.words[slot])
        set_packed(table, slot, entry, self._stride)
        self.volume.relieve()

    def write_zero_bytes(self, offset: int, length: int) -> None:
        """Write zeros as data, only where something else would be read."""
        for run in list(self.volume.mapping.runs(offset, length)):
            if run.kind == UNALLOCATED and self.reader.backing is None:
                continue
            if run.kind == UNALLOCATED or run.kind >= NORMAL:
                for start in range(run.offset, run.offset + run.length, _ZERO_CHUNK):
                    part = min(_ZERO_CHUNK, run.offset + run.length - start)
                    self.write(start, bytes(part))
