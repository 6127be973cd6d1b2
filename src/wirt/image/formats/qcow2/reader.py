"""Reading guest bytes: through this image's clusters, else its backing image."""

from __future__ import annotations

from collections.abc import Callable

from wirt.errors import CorruptImage, ImageIoError, OutOfBounds
from wirt.image.base import Image
from wirt.image.formats.qcow2.compressed import packed_extent, unpack
from wirt.image.formats.qcow2.l2 import NORMAL, PACKED, UNALLOCATED, Run
from wirt.image.formats.qcow2.mapping import Mapping
from wirt.image.formats.qcow2.volume import Volume

Bytes = bytes | bytearray
_MOST_AT_ONCE = 1 << 20
Cipher = Callable[[int, int, bytes], bytes]
"""(guest offset, host offset, sectors) → sectors, enciphered or deciphered."""


class Window:
    """Bytes of the file that were read for several compressed clusters at once."""

    def __init__(self) -> None:
        self.start = 0
        self.data = memoryview(b"")

    def part(self, offset: int, length: int) -> memoryview | None:
        """Return the bytes, or None if they are not inside."""
        inside = offset - self.start
        if inside < 0 or inside + length > len(self.data):
            return None
        return self.data[inside : inside + length]


def packed_row(runs: list[Run], index: int, cluster_bits: int) -> tuple[int, int]:
    """Return where the data of a row of compressed clusters, which mostly touch, begin and end."""
    start, length = packed_extent(runs[index].host, cluster_bits)
    end = start + length
    for run in runs[index + 1 :]:
        if run.kind != PACKED:
            break
        offset, length = packed_extent(run.host, cluster_bits)
        if not start <= offset <= end or offset + length - start > _MOST_AT_ONCE:
            break
        end = max(end, offset + length)
    return start, end


class Reader:
    """Reads one mapping (the active one or a snapshot's)."""

    def __init__(self, volume: Volume, mapping: Mapping, image: Image) -> None:
        self._volume = volume
        self._mapping = mapping
        self._image = image
        self.decipher: Cipher | None = None
        self._expanded = 0
        self._high_water = 0
        budget = volume.options.budget
        self._most_expanded = max(budget.expansion_floor, budget.expansion * volume.storage.size())

    @property
    def backing(self) -> Image | None:
        return self._image.backing

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` guest bytes; the caller has checked the bounds."""
        with self._volume.lock:
            runs = list(self._mapping.runs(offset, length))
        if len(runs) == 1:
            return bytes(self._read_run(runs, 0, Window()))
        window = Window()
        return b"".join(self._read_run(runs, index, window) for index in range(len(runs)))

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with guest bytes; the caller has checked the bounds."""
        with self._volume.lock:
            runs = list(self._mapping.runs(offset, len(buffer)))
        window = Window()
        for index, run in enumerate(runs):
            start = run.offset - offset
            part = buffer[start : start + run.length]
            if run.kind == NORMAL and self.decipher is None:
                self._volume.data_storage.pread_into(run.host, part)
            else:
                part[:] = self._read_run(runs, index, window)

    def read_padded(self, offset: int, length: int) -> bytes:
        """Like ``read``, with zeros past the end of the disk."""
        inside = max(0, min(length, self._image.virtual_size - offset))
        data = self.read(offset, inside) if inside else b""
        return data if inside == length else data + bytes(length - inside)

    def _read_run(self, runs: list[Run], index: int, window: Window) -> Bytes:
        run = runs[index]
        if run.kind == NORMAL:
            return self._read_host(run)
        if run.kind == PACKED:
            return self._read_packed(runs, index, window)
        if run.kind == UNALLOCATED:
            return self._read_backing(run.offset, run.length)
        return bytes(run.length)

    def _read_host(self, run: Run) -> bytes:
        storage = self._volume.data_storage
        if self.decipher is None:
            data = storage.pread(run.host, run.length)
            return data if len(data) == run.length else data + bytes(run.length - len(data))
        before = run.offset & 511
        span = before + run.length
        span += -span & 511
        data = storage.pread(run.host - before, span).ljust(span, b"\0")
        plain = self.decipher(run.offset - before, run.host - before, data)
        return plain[before : before + run.length]

    def _read_packed(self, runs: list[Run], index: int, window: Window) -> Bytes:
        run = runs[index]
        header = self._volume.header
        size = header.cluster_size
        self._count_expanded(run.offset & ~(size - 1), size)
        offset, length = packed_extent(run.host, header.cluster_bits)
        packed = window.part(offset, length)
        if packed is None:
            self._volume.drain()
            window.start, end = packed_row(runs, index, header.cluster_bits)
            window.data = memoryview(self._volume.storage.pread(window.start, end - window.start))
            packed = window.data[:length]
        if not packed:
            raise CorruptImage("a compressed cluster lies beyond the file", offset=offset)
        plain = unpack(header.compression, packed, size)
        if run.length == size:
            return plain
        inside = run.offset & size - 1
        return plain[inside : inside + run.length]

    def _refuse_missing_backing(self) -> None:
        """Zeros instead of the backing image only for who asked for no backing image."""
        if self._volume.header.backing_name and self._volume.options.with_backing:
            raise ImageIoError("the backing image is not open")

    def _count_expanded(self, offset: int, size: int) -> None:
        """Reading on through the disk costs budget; reading a place again does not."""
        if offset < self._high_water:
            return
        self._high_water = offset + size
        self._expanded += size
        if self._expanded > self._most_expanded:
            raise OutOfBounds(
                "compressed data beyond the expansion budget",
                hint="raise the budget if the image is to be trusted",
            )

    def _read_backing(self, offset: int, length: int) -> bytes:
        backing = self.backing
        if backing is None:
            self._refuse_missing_backing()
            return bytes(length)
        inside = max(0, min(length, backing.virtual_size - offset))
        data = backing.pread(offset, inside) if inside else b""
        return data if inside == length else data + bytes(length - inside)
