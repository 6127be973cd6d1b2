"""Reading a disk of a qcow2 file: the active one, or that of a snapshot."""

from __future__ import annotations

from collections.abc import Iterator

from wirt.errors import OutOfBounds
from wirt.image.base import (
    Extent,
    ExtentKind,
    Image,
    ImageInfo,
    Storage,
)
from wirt.image.formats.qcow2.header import (
    Header,
)
from wirt.image.formats.qcow2.information import describe
from wirt.image.formats.qcow2.l2 import NORMAL, PACKED, UNALLOCATED, WITH_HOST, Run
from wirt.image.formats.qcow2.mapping import Mapping as ClusterMapping
from wirt.image.formats.qcow2.reader import Reader
from wirt.image.formats.qcow2.volume import Volume

_KINDS = {UNALLOCATED: ExtentKind.HOLE, NORMAL: ExtentKind.DATA}


class Qcow2View(Image):
    """A readable disk of a qcow2 file: the active one, or an internal snapshot's."""

    format_name = "qcow2"

    def __init__(self, volume: Volume, mapping: ClusterMapping, size: int) -> None:
        self.volume = volume
        self.storage = volume.storage
        self.virtual_size = size
        self._mapping = mapping
        self._reader = Reader(volume, mapping, self)

    @property
    def header(self) -> Header:
        return self.volume.header

    def pread(self, offset: int, length: int) -> bytes:
        self._check_range(offset, length)
        return self._reader.read(offset, length) if length else b""

    def pread_into(self, offset: int, buffer: memoryview) -> None:
        self._check_range(offset, len(buffer))
        self._reader.read_into(offset, buffer)

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.virtual_size:
            raise OutOfBounds("a request reaches past the end of the disk", offset=offset)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        self._check_range(offset, length)
        storage = self.volume.data_storage if self._reader.decipher is None else None
        packed = 0
        for run in self._runs(offset, length):
            if run.kind == PACKED:
                packed += run.length
                continue
            if packed:
                yield _packed_extent(packed, run.offset)
                packed = 0
            yield _extent(run, storage)
        if packed:
            yield _packed_extent(packed, offset + length)

    def _runs(self, offset: int, length: int) -> Iterator[Run]:
        """The runs of a range, taking the lock for each: other threads read meanwhile."""
        found = self._mapping.runs(offset, length)
        while True:
            with self.volume.lock:
                run = next(found, None)
            if run is None:
                return
            yield run

    def share_cipher(self, other: Qcow2View) -> None:
        """Decipher as another view of the same file does."""
        self._reader.decipher = other._reader.decipher

    def info(self) -> ImageInfo:
        return describe(self.volume, self.virtual_size)


def _packed_extent(length: int, end: int) -> Extent:
    return Extent(end - length, length, ExtentKind.DATA, compressed=True)


def _extent(run: Run, storage: Storage | None) -> Extent:
    kind = _KINDS.get(run.kind, ExtentKind.ZERO)
    if kind is not ExtentKind.DATA or storage is None:
        room = run.host if storage is not None and (run.host or run.kind in WITH_HOST) else None
        return Extent(run.offset, run.length, kind, reserved_offset=room)
    return Extent(run.offset, run.length, kind, storage=storage, storage_offset=run.host)


class SnapshotView(Qcow2View):
    """The disk of an internal snapshot, to be read while its image is open."""

    def close(self) -> None:
        """The image keeps storage and backing chain open."""
