"""Persistent dirty bitmaps: what of the disk changed since some moment.

A bitmap's table has one entry for each cluster of its bits: an offset, or 0 for all zeros,
or 1 for all ones. Every change writes a new table and a new directory and switches to them
by the header extension, which lies in the first sector (``header_store.py``).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence

from msgspec.structs import replace

from wirt.errors import (
    AlreadyExists,
    CorruptImage,
    NotFound,
    OutOfBounds,
    UnsupportedImage,
    UsageError,
)
from wirt.image.formats.qcow2 import bitset
from wirt.image.formats.qcow2.bitmap_directory import (
    AUTO,
    IN_USE,
    MAX_BITMAPS,
    Bitmap,
    directory_extent,
    pack_directory,
    pack_extension,
    read_directory,
)
from wirt.image.formats.qcow2.extensions import BITMAPS
from wirt.image.formats.qcow2.guard import BITMAP
from wirt.image.formats.qcow2.header import AUTOCLEAR_BITMAPS, MAX_NAME
from wirt.image.formats.qcow2.l2 import OFFSET
from wirt.image.formats.qcow2.volume import Volume
from wirt.image.formats.qcow2.words import read_table, words_from, words_to

_ALL_ONES = 1


def read_bitmaps(volume: Volume) -> list[Bitmap]:
    return read_directory(volume.storage, volume.header)


def find_bitmap(bitmaps: Sequence[Bitmap], name: str) -> Bitmap:
    for bitmap in bitmaps:
        if bitmap.name == name:
            return bitmap
    raise NotFound(f"there is no bitmap {name!r}", hint="see them: wirt img bitmap ls")


def find_usable(bitmaps: Sequence[Bitmap], name: str) -> Bitmap:
    """Like ``find_bitmap``, but one that was not saved properly is refused."""
    found = find_bitmap(bitmaps, name)
    if found.in_use:
        raise UnsupportedImage(
            f"bitmap {name!r} is inconsistent: it was in use when the image was last closed",
            hint="remove it",
        )
    return found


# Bits


def bits_length(size: int, bitmap: Bitmap) -> int:
    """Return how many bytes of bits a disk of ``size`` bytes needs."""
    granules = -(-size // (1 << bitmap.granularity_bits))
    return -(-granules // 8)


def load_bits(volume: Volume, bitmap: Bitmap) -> bytearray:
    """Read a bitmap's bits. Raises OutOfBounds beyond the budget for metadata."""
    cluster = volume.header.cluster_size
    length = bits_length(volume.header.size, bitmap)
    if max(length, bitmap.table_size * 8) > volume.options.budget.metadata_bytes:
        raise OutOfBounds(f"bitmap {bitmap.name!r} exceeds the budget for metadata")
    if bitmap.table_size * cluster < length:
        raise CorruptImage(f"bitmap {bitmap.name!r} is smaller than the disk")
    bits = bytearray(length)
    for index, entry in enumerate(_table(volume, bitmap)[: -(-length // cluster)]):
        part = min(cluster, length - index * cluster)
        if entry & OFFSET:
            data = read_table(volume.storage, entry & OFFSET, part, "bitmap")
        else:
            data = (b"\xff" if entry & _ALL_ONES else b"\0") * part
        bits[index * cluster : index * cluster + part] = data
    return bits


def _table(volume: Volume, bitmap: Bitmap) -> array[int]:
    if not bitmap.table_size:
        return array("Q")
    if bitmap.table_size * 8 > volume.options.budget.metadata_bytes:
        raise OutOfBounds(f"bitmap {bitmap.name!r} exceeds the budget for metadata")
    raw = read_table(volume.storage, bitmap.table_offset, bitmap.table_size * 8, "bitmap table")
    return words_from(raw)


def store_bits(volume: Volume, bitmap: Bitmap, bits: bytes | bytearray) -> Bitmap:
    """Write bits and table into new clusters; returns the bitmap that refers to them."""
    cluster = volume.header.cluster_size
    entries = array("Q")
    for start in range(0, len(bits), cluster):
        part = bytes(bits[start : start + cluster])
        entries.append(_place(volume, part) if any(part) else 0)
    entries = entries or array("Q", [0])
    return replace(bitmap, table_offset=_place(volume, words_to(entries)), table_size=len(entries))


def _place(volume: Volume, data: bytes) -> int:
    size, bits = volume.header.cluster_size, volume.header.cluster_bits
    offset = volume.refcounts.allocate_exact(-(-len(data) // size)) << bits
    volume.write_metadata("", offset, data + bytes(-len(data) % size))
    return offset


def release_bits(volume: Volume, bitmap: Bitmap) -> None:
    """Free a bitmap's bits and table at the next commit."""
    for entry in _table(volume, bitmap):
        if entry & OFFSET:
            volume.release(entry & OFFSET, volume.header.cluster_size)
    if bitmap.table_size:
        volume.release(bitmap.table_offset, bitmap.table_size * 8)


# The directory


def replace_directory(volume: Volume, bitmaps: Sequence[Bitmap]) -> None:
    """Make ``bitmaps`` all that the image has; durable when it returns."""
    header = volume.header
    if header.version < 3:
        raise UnsupportedImage("a version 2 image cannot have bitmaps")
    old_offset, old_length = directory_extent(header)
    if bitmaps:
        raw = pack_directory(bitmaps)
        offset = _place(volume, raw)
        extension = pack_extension(len(bitmaps), len(raw), offset)
        header.set_extension(BITMAPS, extension)
        header.autoclear |= AUTOCLEAR_BITMAPS
    else:
        header.set_extension(BITMAPS, None)
        header.autoclear &= ~AUTOCLEAR_BITMAPS
    released, volume.refcounts.released = volume.refcounts.released, []
    volume.commit()
    volume.header_store.write_all()
    volume.refcounts.released = released
    volume.guard.drop(old_offset, old_length)
    volume.guard.add(BITMAP, *directory_extent(header))
    if old_length:
        volume.release(old_offset, old_length)
    volume.commit()


def add_bitmap(volume: Volume, name: str, granularity: int, *, enabled: bool) -> None:
    bitmaps = read_bitmaps(volume)
    if not 0 < len(name.encode("utf-8", "surrogateescape")) <= MAX_NAME:
        raise UsageError(f"a bitmap's name has 1 to {MAX_NAME} bytes")
    if any(bitmap.name == name for bitmap in bitmaps):
        raise AlreadyExists(f"Bitmap already exists: {name}")
    if len(bitmaps) >= MAX_BITMAPS:
        raise OutOfBounds("the image has as many bitmaps as it can have")
    granularity = granularity or min(65536, max(4096, volume.header.cluster_size))
    if granularity & (granularity - 1) or not 512 <= granularity <= 1 << 31:
        raise UsageError("Granularity must be power of 2 and at least 512")
    bare = Bitmap(0, 0, AUTO if enabled else 0, granularity.bit_length() - 1, name)
    length = bits_length(volume.header.size, bare)
    if length > volume.options.budget.metadata_bytes:
        raise OutOfBounds("the bitmap would be too large", hint="choose a larger granularity")
    volume.commit()
    replace_directory(volume, [*bitmaps, store_bits(volume, bare, bytes(length))])


def remove_bitmap(volume: Volume, name: str) -> None:
    bitmaps = read_bitmaps(volume)
    gone = find_bitmap(bitmaps, name)
    volume.commit()
    release_bits(volume, gone)
    replace_directory(volume, [bitmap for bitmap in bitmaps if bitmap is not gone])


def rewrite_bits(volume: Volume, name: str, bits: bytes | bytearray) -> None:
    """Give a bitmap new bits."""
    bitmaps = read_bitmaps(volume)
    old = find_usable(bitmaps, name)
    volume.commit()
    new = store_bits(volume, old, bits)
    release_bits(volume, old)
    replace_directory(volume, [new if bitmap is old else bitmap for bitmap in bitmaps])


def clear_bitmap(volume: Volume, name: str) -> None:
    bitmap = find_usable(read_bitmaps(volume), name)
    rewrite_bits(volume, name, bytes(bits_length(volume.header.size, bitmap)))


def mark_ranges(volume: Volume, name: str, ranges: Iterable[tuple[int, int]]) -> None:
    """Mark (offset, length) ranges in a bitmap, whatever its granularity."""
    bitmap = find_usable(read_bitmaps(volume), name)
    bits, shift = load_bits(volume, bitmap), bitmap.granularity_bits
    for offset, length in ranges:
        bitset.set_bits(bits, offset >> shift, (offset + length + (1 << shift) - 1) >> shift)
    rewrite_bits(volume, name, bits)


def enable_bitmap(volume: Volume, name: str, *, enabled: bool) -> None:
    bitmaps = read_bitmaps(volume)
    chosen = find_usable(bitmaps, name)
    chosen.flags = chosen.flags | AUTO if enabled else chosen.flags & ~AUTO
    volume.commit()
    replace_directory(volume, bitmaps)


def dirty_ranges(volume: Volume, name: str) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of what a bitmap marks, within the disk."""
    bitmap = find_usable(read_bitmaps(volume), name)
    shift, size = bitmap.granularity_bits, volume.header.size
    granules = -(-size // (1 << shift))
    for first, count in bitset.runs(load_bits(volume, bitmap), granules):
        offset = first << shift
        yield offset, min(count << shift, size - offset)


def fit_bitmaps(volume: Volume, size: int) -> None:
    """Give all bitmaps as many bits as a disk of ``size`` bytes needs; new ones are 0."""
    bitmaps = read_bitmaps(volume)
    if not bitmaps:
        return
    volume.commit()
    fitted = []
    for bitmap in bitmaps:
        if bitmap.in_use:
            fitted.append(bitmap)
            continue
        bits = load_bits(volume, bitmap)
        granules = -(-size // (1 << bitmap.granularity_bits))
        length = -(-granules // 8)
        bits = bits[:length].ljust(length, b"\0")
        if granules & 7 and bits:
            bits[-1] &= (1 << (granules & 7)) - 1
        fitted.append(store_bits(volume, bitmap, bits))
        release_bits(volume, bitmap)
    replace_directory(volume, fitted)


class Recorder:
    """Marks what is written in the enabled bitmaps.

    While it works the bitmaps are *in use* on disk, so after a power cut nobody trusts
    them. ``store`` writes them and takes that mark away.
    """

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._bits: dict[str, tuple[int, bytearray]] = {}
        bitmaps = read_bitmaps(volume)
        for bitmap in bitmaps:
            if bitmap.flags & AUTO and not bitmap.in_use:
                self._bits[bitmap.name] = bitmap.granularity_bits, load_bits(volume, bitmap)
                bitmap.flags |= IN_USE
        if self._bits:
            volume.commit()
            replace_directory(volume, bitmaps)

    def record(self, offset: int, length: int) -> None:
        for shift, bits in self._bits.values():
            bitset.set_bits(bits, offset >> shift, (offset + length + (1 << shift) - 1) >> shift)

    def store(self) -> None:
        """Save the bitmaps; the recorder is spent."""
        if not self._bits:
            return
        volume = self._volume
        volume.commit()
        bitmaps = []
        for bitmap in read_bitmaps(volume):
            if bitmap.name in self._bits:
                new = store_bits(volume, bitmap, self._bits[bitmap.name][1])
                release_bits(volume, bitmap)
                bitmaps.append(replace(new, flags=bitmap.flags & ~IN_USE))
            else:
                bitmaps.append(bitmap)
        self._bits.clear()
        replace_directory(volume, bitmaps)
