"""Resize: a longer disk reads as zeros behind its old end, a shorter one loses the rest."""

from __future__ import annotations

from array import array

from wirt.errors import UnsupportedImage, UsageError
from wirt.image.formats.qcow2.guard import ACTIVE_L1
from wirt.image.formats.qcow2.header import MAX_L1_BYTES
from wirt.image.formats.qcow2.l2 import OFFSET, Table
from wirt.image.formats.qcow2.volume import Volume
from wirt.image.formats.qcow2.words import words_to
from wirt.image.formats.qcow2.writer import Writer
from wirt.image.formats.qcow2.zeroes import write_zeroes


def resize(writer: Writer, old: int, new: int, mode: str = "off") -> None:
    """Change the virtual size from ``old`` to ``new``; durable when it returns.

    ``mode`` is the preallocation of the new part, as ``qemu-img resize`` names it.
    """
    volume = writer.volume
    if new < 0 or new % 512:
        raise UsageError("the new size must be a multiple of 512 bytes")
    if new < old and volume.header.snapshot_count and volume.header.version < 3:
        raise UnsupportedImage("Can't resize a v2 image which has snapshots")
    if new > old:
        _grow(writer, old, new, mode)
    elif new < old:
        _shrink(writer, new)


def _grow(writer: Writer, old: int, new: int, mode: str) -> None:
    volume, header = writer.volume, writer.volume.header
    entries = header.l1_entries_for(new)
    if entries * 8 > MAX_L1_BYTES:
        raise UnsupportedImage("the new size is too large for the image's cluster size")
    _clear_tail(writer, old, new)
    # What an interrupted change left there must not appear on the longer disk.
    _drop_beyond(writer, old)
    if entries > len(volume.mapping.l1.words):
        grow_l1(volume, entries)
    _hide_backing(writer, old, new)
    if header.has_data_file and volume.data_storage.size() < new:
        volume.data_storage.truncate(new)
    if header.raw_data_file and mode == "off":
        # Only allocated clusters show the raw file's bytes.
        mode = "metadata"
    if mode != "off":
        preallocate(writer, old, new, mode)
        _clear_reused(writer, old, new, mode)
    volume.commit()
    header.size = new
    volume.header_store.write_first_sector()
    volume.barrier()


def _clear_tail(writer: Writer, old: int, new: int) -> None:
    """The last cluster may hold anything behind the old end: make it zeros."""
    end = min(new, -(-old // writer.volume.header.cluster_size) * writer.volume.header.cluster_size)
    if end > old:
        writer.write_zero_bytes(old, end - old)


def _hide_backing(writer: Writer, old: int, new: int) -> None:
    """A backing image longer than this disk was must not show in the new part."""
    backing = writer.reader.backing
    if backing is not None and backing.virtual_size > old:
        end = min(new, backing.virtual_size)
        write_zeroes(writer, old, end - old, new, unmap=True)


def _clear_reused(writer: Writer, old: int, new: int, mode: str) -> None:
    """Clusters allocated in advance may hold old bytes: let them read as zeros."""
    header = writer.volume.header
    start = -(-old // header.cluster_size) * header.cluster_size
    if mode == "full" or start >= new or header.raw_data_file:
        return
    if header.version >= 3:
        write_zeroes(writer, start, new - start, new, unmap=False)
    else:
        writer.write_zero_bytes(start, new - start)


def grow_l1(volume: Volume, entries: int) -> None:
    """Move the L1 to a larger table: the new one is written, then the header switches."""
    volume.commit()
    header, old = volume.header, volume.mapping.l1
    size, bits = header.cluster_size, header.cluster_bits
    words = array("Q", old.words)
    words.extend([0] * (entries - len(words)))
    place = volume.refcounts.allocate_exact(-(-entries * 8 // size)) << bits
    volume.commit()
    raw = words_to(words)
    volume.write_metadata("", place, raw + bytes(-len(raw) % size))
    volume.barrier()
    volume.guard.drop(old.offset, len(old.words) * 8)
    volume.guard.add(ACTIVE_L1, place, entries * 8)
    header.l1_offset, header.l1_size = place, entries
    volume.header_store.write_first_sector()
    volume.barrier()
    volume.mapping.l1 = Table(place, words, fresh=False)
    if old.words:
        volume.release(old.offset, len(old.words) * 8)
    volume.commit()


def _shrink(writer: Writer, new: int) -> None:
    """The header first: whoever finds the image after a power cut finds a shorter disk."""
    volume, header = writer.volume, writer.volume.header
    volume.commit()
    header.size = new
    volume.header_store.write_first_sector()
    volume.barrier()
    _drop_beyond(writer, new)
    volume.commit()
    if header.has_data_file:
        volume.data_storage.truncate(new)


def _drop_beyond(writer: Writer, new: int) -> None:
    """Free all clusters, and all L2 tables, that lie wholly behind the new end."""
    volume, header = writer.volume, writer.volume.header
    mapping, size = volume.mapping, header.cluster_size
    first = -(-new // size) * size
    boundary = -(-first >> mapping.shift) << mapping.shift
    if first < boundary and mapping.l2_offset(first >> mapping.shift):
        table = writer.table_for(first)
        _drop_entries(writer, table, writer.slot_of(first))
    for index in range(-(-first >> mapping.shift), len(mapping.l1.words)):
        _drop_table(writer, index)


def _drop_entries(writer: Writer, table: Table, low: int) -> None:
    """Free what the entries from word ``low`` on refer to."""
    high = len(table.words)
    if any(table.words[low:]):
        for slot in range(low, high, writer.volume.mapping.stride):
            writer.give_back(table.words[slot])
        table.words[low:] = array("Q", bytes((high - low) * 8))
        table.touch(low, high)


def _drop_table(writer: Writer, index: int) -> None:
    volume, mapping = writer.volume, writer.volume.mapping
    table = mapping.table(index)
    if table is None:
        return
    for entry in table.words[:: mapping.stride]:
        writer.give_back(entry)
    mapping.drop_table(index)
    volume.guard.drop(table.offset)
    volume.release(table.offset & OFFSET, 1)


def preallocate(writer: Writer, start: int, end: int, mode: str) -> None:
    """Allocate clusters for a range that reads as zeros: ``metadata``, ``falloc`` or ``full``.

    The last one whole, also where the disk ends in it.
    """
    volume, size = writer.volume, writer.volume.header.cluster_size
    whole = -(-start // size) * size
    if mode in {"falloc", "full"} and start < whole:
        writer.write(start, bytes(min(whole, end) - start))
    start = whole
    if not volume.header.has_data_file:
        end = -(-end // size) * size
    for _, host, length in writer.allocate(start, end - start):
        if mode == "full":
            for offset in range(host, host + length, 1 << 20):
                volume.write_data(offset, bytes(min(1 << 20, host + length - offset)))
        elif mode == "falloc" and not volume.data_storage.reserve(host, length):
            raise UnsupportedImage("the image's storage cannot reserve space (falloc)")
    if writer.encipher is not None:
        # Whatever lies there would be deciphered: let it read as zeros.
        write_zeroes(writer, start, end - start, end, unmap=False)


def preallocate_behind(writer: Writer, start: int, end: int, mode: str) -> None:
    """The same for a range that shows a backing image: each cluster has its place, but its
    subclusters are not allocated until they are written.
    """
    preallocate(writer, start, end, mode)
    for offset in range(start, end, writer.volume.header.cluster_size):
        table, slot = writer.table_for(offset), writer.slot_of(offset)
        table.words[slot + 1] = 0
        table.touch(slot + 1, slot + 2)
        writer.volume.relieve()
