"""Compressed clusters.

Their L2 entry holds, for x = 62 - (cluster bits - 8): bits 0..x-1 the byte offset of the
packed data, bits x..61 the number of further 512-byte sectors it touches. So the length is
known only to the sector, and the decoder must ignore what follows the stream.
"""

from __future__ import annotations

import threading
import zlib
from array import array
from collections.abc import Callable
from functools import cache
from typing import Any

from wirt.errors import CorruptImage, MissingDependency, OutOfBounds
from wirt.image.formats.qcow2.header import SECTOR, ZLIB
from wirt.image.formats.qcow2.l2 import COMPRESSED, Table
from wirt.image.formats.qcow2.volume import Volume

Bytes = bytes | bytearray
Packed = bytes | memoryview
_BUFFER = 4 << 20  # two of the largest clusters


def packed_extent(entry: int, cluster_bits: int) -> tuple[int, int]:
    """Return (host offset, length in bytes, a few too many) of a compressed cluster."""
    shift = 62 - (cluster_bits - 8)
    offset = entry & ((1 << shift) - 1)
    sectors = (entry & COMPRESSED - 1) >> shift
    return offset, (sectors + 1) * SECTOR - (offset & SECTOR - 1)


def pack_entry(offset: int, length: int, cluster_bits: int) -> int:
    shift = 62 - (cluster_bits - 8)
    sectors = ((offset + length - 1) >> 9) - (offset >> 9)
    return COMPRESSED | sectors << shift | offset


def unpack(method: int, packed: Packed, size: int) -> Bytes:
    """Return the cluster of ``size`` bytes. Raises CorruptImage."""
    plain = _inflate(packed, size) if method == ZLIB else _unpack_zstd(packed, size)
    if plain is None or len(plain) != size:
        raise CorruptImage("a compressed cluster cannot be decompressed")
    return plain


def _inflate(packed: Packed, size: int) -> Bytes | None:
    """Inflate with the fastest decoder that can; None if the data is wrong."""
    for decoder in _inflaters():
        try:
            return decoder(packed, size)
        except ValueError:
            continue
    return None


@cache
def _inflaters() -> list[Callable[[Packed, int], Bytes]]:
    """Libdeflate first, which wants the exact size; then one that may stop at it, as QEMU does."""
    found = []
    try:
        import deflate
    except ImportError:
        pass
    else:
        found.append(_mapped(deflate.deflate_decompress, deflate.DeflateError))
    try:
        from isal import isal_zlib
    except ImportError:
        found.append(_mapped(_streaming(zlib.decompressobj), zlib.error))
    else:
        found.append(_mapped(_streaming(isal_zlib.decompressobj), isal_zlib.error))
    return found


def _streaming(make: Callable[[int], Any]) -> Callable[[Packed, int], bytes]:
    return lambda packed, size: make(-15).decompress(packed, size)


def _mapped(decode: Callable[[Packed, int], Bytes], wrong: Any) -> Callable[[Packed, int], Bytes]:
    """Turn the decoder's own error into ValueError."""

    def inflate(packed: Packed, size: int) -> Bytes:
        try:
            return decode(packed, size)
        except wrong as error:
            raise ValueError from error

    return inflate


def _unpack_zstd(packed: Packed, size: int) -> bytes | None:
    try:
        import zstandard
    except ImportError as error:
        raise MissingDependency(
            "this image needs the Python module zstandard", hint="pip install zstandard"
        ) from error
    decoder = _zstd_decoder()
    try:
        # One call allocates by the frame's own words, so these are read first.
        if zstandard.frame_content_size(packed) <= size:
            plain: bytes = decoder.decompress(packed, max_output_size=size)
            if len(plain) == size:
                return plain
        with decoder.stream_reader(packed, read_across_frames=True) as reader:
            rest: bytes = reader.read(size)
            return rest
    except zstandard.ZstdError:
        return None


def _zstd_decoder() -> Any:
    """Return this thread's decoder: a context serves one thread, and is costly to make."""
    if not hasattr(_decoders, "zstd"):
        import zstandard

        # One window of the largest cluster is the most that a frame may ask for.
        _decoders.zstd = zstandard.ZstdDecompressor(max_window_size=8 << 20)
    return _decoders.zstd


_decoders = threading.local()


class Packer:
    """Places packed clusters tightly one behind the other, buffered into large writes."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._next = 0
        self._free = 0
        self._start = 0
        self._buffer = bytearray(_BUFFER)
        self._filled = 0
        volume.drains.append(self.write_out)
        volume.seals.append(self.seal)

    def place(self, packed: bytes) -> int:
        """Store ``packed`` and return its L2 entry."""
        bits = self._volume.header.cluster_bits
        offset = self._reserve(len(packed))
        if offset >> (62 - (bits - 8)):
            raise OutOfBounds("compressed data does not fit into so large a file")
        self._volume.guard.check(offset, len(packed))
        filled = self._filled
        if self._start + filled != offset or filled + len(packed) > _BUFFER:
            self.write_out()
            self._start, filled = offset, 0
        self._filled = filled + len(packed)
        self._buffer[filled : self._filled] = packed
        self._next, self._free = offset + len(packed), self._free - len(packed)
        self._volume.note_data_written()
        return pack_entry(offset, len(packed), bits)

    def _reserve(self, length: int) -> int:
        """Return where ``length`` bytes go; counts every cluster that they touch."""
        size = self._volume.header.cluster_size
        refcounts = self._volume.refcounts
        here = self._next // size
        shared = self._free > 0 and 0 < refcounts.get(here) < refcounts.largest
        if shared and length <= self._free:
            refcounts.add(here, 1)
            return self._next
        first = refcounts.allocate_exact(1)
        if shared and first * size == self._next + self._free:
            refcounts.add(here, 1)
            self._free += size
            return self._next
        self._free = size
        return first * size

    def write_out(self) -> None:
        if self._filled:
            view = memoryview(self._buffer)[: self._filled]
            self._filled = 0
            self._volume.write_metadata("", self._start, view)

    def seal(self) -> None:
        """Forget the half-filled cluster: others may change its refcount."""
        self.write_out()
        self._next = self._free = 0


def set_packed(table: Table, slot: int, entry: int, stride: int) -> None:
    """Store a compressed entry; an extended one has an empty bitmap."""
    table.words[slot : slot + stride] = array("Q", (entry, 0)[:stride])
    table.touch(slot, slot + stride)
