"""Images whose guest bytes are found run by run through a table: what they share.

A format says where one run lies (``_run``); reading and extents follow from that. A format
that can be written allocates whole blocks at the end of the file. A block's place is
published in the table only by ``flush``, after the block itself is durable: a power cut
loses what was not flushed and nothing else, and needs no log.
"""

from __future__ import annotations

import bisect
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence

from wirt.errors import CorruptImage, ImageIoError, OutOfBounds, UsageError
from wirt.image.base import (
    Budget,
    Extent,
    ExtentKind,
    Image,
    ImageInfo,
    Storage,
    WritableImage,
)
from wirt.image.extents import joined
from wirt.image.zero_runs import data_runs

SECTOR = 512
CHECK_HINT = "check and repair it: wirt img check --repair"
_FILL = bytes(1 << 20)
_PAGE = 4096


def read_exactly(storage: Storage, offset: int, length: int, what: str) -> bytes:
    """Return ``length`` bytes of the file. Raises CorruptImage if it is shorter."""
    if offset < 0 or length < 0 or offset + length > storage.size():
        raise CorruptImage(f"{what} lies beyond the end of the file", offset=max(offset, 0))
    data = storage.pread(offset, length)
    if len(data) != length:
        raise CorruptImage(f"{what} is cut off", offset=offset)
    return data


def read_metadata(storage: Storage, offset: int, length: int, what: str, budget: Budget) -> bytes:
    """As ``read_exactly``, within the budget for metadata. Raises OutOfBounds over it."""
    if length > budget.metadata_bytes:
        raise OutOfBounds(f"{what} of {length} bytes is over the budget for metadata")
    return read_exactly(storage, offset, length, what)


class MappedImage(Image):
    """A readable image: ``_run`` finds, ``pread`` and ``extents`` use what it found."""

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.virtual_size:
            raise OutOfBounds(f"{length} bytes at {offset:#x} are not inside the disk")

    @abstractmethod
    def _run(self, offset: int, limit: int) -> Extent:
        """Return the run that begins at ``offset``, from 1 to ``limit`` bytes long."""

    def _runs(self, offset: int, length: int) -> Iterator[Extent]:
        end = offset + length
        while offset < end:
            run = self._run(offset, end - offset)
            if not 0 < run.length <= end - offset:
                raise CorruptImage("the allocation table contradicts itself", offset=offset)
            yield run
            offset = run.end

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        self._check(offset, length)
        yield from joined(self._runs(offset, length))

    def pread(self, offset: int, length: int) -> bytes:
        self._check(offset, length)
        parts = [self._read_run(run) for run in joined(self._runs(offset, length))]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def pread_into(self, offset: int, buffer: memoryview) -> None:
        self._check(offset, len(buffer))
        for run in joined(self._runs(offset, len(buffer))):
            part = buffer[run.offset - offset : run.end - offset]
            if run.storage is None or run.storage_offset is None:
                part[:] = self._read_run(run)
            else:
                run.storage.pread_into(run.storage_offset, part)

    def _read_run(self, run: Extent) -> bytes:
        if run.kind is ExtentKind.HOLE:
            return self._read_hole(run.offset, run.length)
        if run.kind is ExtentKind.ZERO:
            return bytes(run.length)
        if run.storage is None or run.storage_offset is None:
            return self._read_packed(run.offset, run.length)
        data = run.storage.pread(run.storage_offset, run.length)
        return data if len(data) == run.length else data.ljust(run.length, b"\0")

    def _read_hole(self, offset: int, length: int) -> bytes:
        """Return what shows through: the backing image, and zeros behind its end."""
        backing = self.backing
        if backing is None:
            return bytes(length)
        inside = max(0, min(length, backing.virtual_size - offset))
        data = backing.pread(offset, inside) if inside else b""
        return data.ljust(length, b"\0")

    def _read_packed(self, offset: int, length: int) -> bytes:
        """Return bytes that do not lie verbatim in a file (compressed, encrypted)."""
        raise CorruptImage("this run has no place in the file", offset=offset)

    def info(self) -> ImageInfo:
        return ImageInfo(self.format_name, self.virtual_size, stored_size(self.storage))


def stored_size(storage: Storage) -> int:
    """Return the bytes that the file occupies, or its length where that is not known."""
    known = getattr(storage, "allocated_size", None)
    return int(known()) if known is not None else storage.size()


class BlockImage(MappedImage, WritableImage):
    """A mapped image that can be written: blocks of ``block_size``, allocated whole."""

    block_size: int
    writable: bool = False
    _next: int = 0
    """Where in the file the next block will lie."""

    def __init__(self) -> None:
        self._unpublished: set[int] = set()

    @abstractmethod
    def _store(self, index: int, content: bytes) -> None:
        """Write one whole block to a new or its old place, and remember that place."""

    @abstractmethod
    def _publish(self, indexes: list[int]) -> None:
        """Write the table entries of these blocks; the blocks are durable by now."""

    def _zero(self, index: int) -> bool:
        """Mark a whole block as zeros without storage; False where the format cannot."""
        return False

    def _before_write(self) -> None:
        if not self.writable:
            raise ImageIoError("the image is open for reading only", path=self.storage.name)

    def _blocks(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Yield (index, offset, length) of the part of each block in the range."""
        end = offset + length
        while offset < end:
            index, inside = divmod(offset, self.block_size)
            step = min(self.block_size - inside, end - offset)
            yield index, offset, step
            offset += step

    def _block_length(self, index: int) -> int:
        return min(self.block_size, self.virtual_size - index * self.block_size)

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        self._check(offset, len(view))
        self._before_write()
        for index, start, length in self._blocks(offset, len(view)):
            self._write_part(index, start, view[start - offset : start - offset + length])

    def _write_part(self, index: int, offset: int, part: memoryview) -> None:
        run = self._run(offset, len(part))
        in_place = run.length == len(part) and run.kind is ExtentKind.DATA
        if in_place and run.storage is not None and run.storage_offset is not None:
            run.storage.pwrite(run.storage_offset, part)
            return
        self._store(index, self._overlaid(index, offset, part))
        self._unpublished.add(index)

    def _overlaid(self, index: int, offset: int, part: memoryview) -> bytes:
        """Return the whole block as it will be, padded with zeros at the disk's end."""
        if len(part) == self.block_size:
            return bytes(part)
        start = index * self.block_size
        content = bytearray(self.pread(start, self._block_length(index)))
        content[offset - start : offset - start + len(part)] = part
        return bytes(content.ljust(self.block_size, b"\0"))

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self._check(offset, length)
        self._before_write()
        for index, start, part in self._blocks(offset, length):
            if self._reads_as_zero(start, part):
                continue
            if unmap and part == self._block_length(index) and self._zero(index):
                self._unpublished.add(index)
                continue
            if unmap and self._punched(start, part):
                continue
            for at in range(0, part, len(_FILL)):
                step = min(part - at, len(_FILL))
                self._write_part(index, start + at, memoryview(_FILL)[:step])

    def _punched(self, offset: int, length: int) -> bool:
        """Free the file's bytes below a run that lies there; False where that cannot be."""
        run = self._run(offset, length)
        if run.kind is not ExtentKind.DATA or run.length != length:
            return False
        if run.storage is None or run.storage_offset is None:
            return False
        return run.storage.punch_hole(run.storage_offset, length)

    def _reads_as_zero(self, offset: int, length: int) -> bool:
        for run in self._runs(offset, length):
            shows = run.kind is ExtentKind.HOLE and self.backing is not None
            if run.kind is ExtentKind.DATA or shows:
                return False
        return True

    def discard(self, offset: int, length: int) -> None:
        self.write_zeroes(offset, length)

    def _append(self, content: bytes, *, align: int = SECTOR) -> int:
        """Write ``content`` behind all that is allocated; return where it lies."""
        place = -(-self._next // align) * align
        lay(self.storage, place, content)
        self._next = place + len(content)
        return place

    def flush(self) -> None:
        if self._unpublished:
            self.storage.flush()
            self._publish(sorted(self._unpublished))
            self._unpublished.clear()
        self.storage.flush()

    def close(self) -> None:
        try:
            if self.writable and self._unpublished:
                self.flush()
        finally:
            super().close()


def lay(storage: Storage, place: int, content: bytes) -> None:
    """Write ``content``; zeros behind the file's end become a hole there."""
    if place < storage.size():
        storage.pwrite(place, content)
        return
    view = memoryview(content)
    for start, end in data_runs(view, _PAGE):
        storage.pwrite(place + start, view[start:end])
    if storage.size() < place + len(view):
        storage.truncate(place + len(view))


def run_of_bits(bits: str, start: int) -> int:
    """Return where the run of equal bits that begins at ``start`` ends."""
    change = bits.find("0" if bits[start] == "1" else "1", start)
    return len(bits) if change < 0 else change


def hole_before(used: Sequence[int], offset: int, limit: int, block_size: int) -> Extent:
    """Return the hole that reaches from ``offset`` to the next of the blocks ``used`` (sorted).

    In one step: a disk may declare a million times what it stores.
    """
    after = bisect.bisect(used, offset // block_size)
    if after < len(used):
        limit = min(limit, used[after] * block_size - offset)
    return Extent(offset, limit, ExtentKind.HOLE)


def verbatim(offset: int, limit: int, storage: Storage, place: int) -> Extent:
    """Return the run that lies as it is at ``place``; holes of the file are zeros."""
    for start, length, is_data in storage.extents(place, limit):
        if start > place:
            return Extent(offset, start - place, ExtentKind.ZERO)
        kind = ExtentKind.DATA if is_data else ExtentKind.ZERO
        return Extent(offset, length, kind, storage=storage, storage_offset=place)
    return Extent(offset, limit, ExtentKind.ZERO, storage=storage, storage_offset=place)


def refuse_unknown(options: Mapping[str, str], *known: str) -> None:
    """Raise UsageError for a creation option that the format does not have."""
    unknown = sorted(set(options) - set(known) - {"size"})
    if unknown:
        raise UsageError(
            f"Invalid parameter '{unknown[0]}'", hint=f"known: {', '.join(known) or 'none'}"
        )
