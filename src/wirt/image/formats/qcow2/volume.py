"""An open qcow2 file: its tables, and the order in which changes of them reach the disk.

Changes gather in memory. ``commit`` writes them so that a power cut between any two
writes, with unflushed ones lost or reordered, leaves an image that is consistent (at worst
with leaked clusters) and has every flushed byte::

    1  new refcount blocks and a moved refcount table    (nothing refers to them)   barrier
    2  raised refcounts, links to 1, guest data (written before), new L2 tables     barrier
    3  entries in linked L2 tables and in the L1                                    barrier
    4  lowered refcounts

A step that has nothing to write needs no barrier. A cluster freed in step 4 was referred to
by nothing since the barrier before, so it may be used again at once. Larger changes
(snapshots, a moved L1, bitmaps) write everything new beside the old and switch by the
first header sector: see ``shadow.py`` and ``header_store.py``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from wirt.errors import CorruptImage, ImageError, ImageIoError, OutOfBounds
from wirt.image.base import OpenOptions, Storage
from wirt.image.formats.qcow2.extensions import CRYPTO
from wirt.image.formats.qcow2.guard import (
    ACTIVE_L1,
    ACTIVE_L2,
    BITMAP,
    CRYPTO_HEADER,
    INACTIVE_L1,
    REFBLOCK,
    REFTABLE,
    SNAPSHOT_TABLE,
    Guard,
)
from wirt.image.formats.qcow2.header import CORRUPT, Header
from wirt.image.formats.qcow2.header_store import HeaderStore
from wirt.image.formats.qcow2.l2 import Table
from wirt.image.formats.qcow2.mapping import Mapping, load_l1
from wirt.image.formats.qcow2.refcount import Refcounts

_DIRTY_BYTES = 16 << 20
_RELEASED = 50_000


class Volume:
    """The metadata of one qcow2 file and the storages it speaks of."""

    def __init__(self, storage: Storage, header: Header, options: OpenOptions) -> None:
        self.storage = storage
        self.data_storage = storage
        self.header = header
        self.options = options
        self.lock = threading.RLock()
        self.guard = Guard(header.cluster_bits)
        self._deadline = time.monotonic() + options.budget.seconds
        table_bytes = header.l1_size * 8 + (header.reftable_clusters << header.cluster_bits)
        if table_bytes > options.budget.metadata_bytes:
            raise OutOfBounds("the image's tables exceed the budget for metadata")
        l1 = load_l1(storage, header.l1_offset, header.l1_size)
        self.mapping = Mapping(storage, header, l1, self.tick)
        self.header_store = HeaderStore(storage, header, self._write_header, self.barrier)
        self._refcounts: Refcounts | None = None
        self._registered = False
        self.drains: list[Callable[[], None]] = []
        """Write out what is buffered outside the tables."""
        self.seals: list[Callable[[], None]] = []
        """Forget half-filled clusters, because clusters are about to be freed."""
        self._bulk = 0
        self._unflushed = False
        self.broken = ""
        """Why nothing may be written any more, if so."""
        self._reserved_end = 0

    @property
    def refcounts(self) -> Refcounts:
        """The refcounts; they are read when first needed, which a plain reader never does."""
        if self._refcounts is None:
            self._refcounts = Refcounts(self.storage, self.header, self.guard)
        return self._refcounts

    def reload(self) -> None:
        """Read the tables anew: they were replaced on disk, and nothing waits in memory."""
        header = self.header
        self._seal()
        self.mapping.forget(load_l1(self.storage, header.l1_offset, header.l1_size))
        self._refcounts = Refcounts(self.storage, header, self.guard)
        self._registered = False
        self.register_metadata()

    def tick(self) -> None:
        """Raise OutOfBounds when the image has cost more time than its budget."""
        if time.monotonic() > self._deadline:
            raise OutOfBounds("the image takes longer than its budget of time")

    # What writers need

    def register_metadata(self) -> None:
        """Tell the guard about all metadata, before the first write."""
        if self._registered:
            return
        header = self.header
        self.guard.clear()
        self.refcounts.register()
        self.guard.add(ACTIVE_L1, header.l1_offset, header.l1_size * 8)
        for index, word in enumerate(self.mapping.l1.words):
            if word:
                offset = self.mapping.l2_offset(index)
                if offset:
                    self.guard.add(ACTIVE_L2, offset)
        from wirt.image.formats.qcow2.snapshot_table import read_snapshots

        snapshots, length = read_snapshots(self.storage, header)
        self.guard.add(SNAPSHOT_TABLE, header.snapshots_offset, length)
        for snapshot in snapshots:
            self.guard.add(INACTIVE_L1, snapshot.l1_offset, snapshot.l1_size * 8)
        from wirt.image.formats.qcow2.bitmap_directory import directory_extent

        self.guard.add(BITMAP, *directory_extent(header))
        crypto = header.extension(CRYPTO)
        if crypto is not None and len(crypto) == 16:
            self.guard.add(CRYPTO_HEADER, int.from_bytes(crypto[:8]), int.from_bytes(crypto[8:]))
        self._registered = True

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Guard one change: under the lock, and a contradiction marks the image corrupt."""
        with self.lock:
            if self.broken:
                raise ImageIoError(self.broken)
            try:
                yield
            except CorruptImage as error:
                self._mark_corrupt(error)
                raise

    def _mark_corrupt(self, error: CorruptImage) -> None:
        self.broken = f"the image was found corrupt and is no longer written: {error.message}"
        if self.header.version >= 3 and not self.storage.read_only:
            self.header.incompatible |= CORRUPT
            self.header_store.write_first_sector()

    def write_data(self, host: int, data: bytes | bytearray | memoryview) -> None:
        """Write guest bytes into allocated clusters."""
        if self.data_storage is self.storage:
            self.guard.check(host, len(data))
        self._unflushed = True
        self.data_storage.pwrite(host, data)

    def note_data_written(self, end: int = 0) -> None:
        """The caller writes guest bytes itself (``copy_file_range``), up to ``end``."""
        self._unflushed = True
        self._reserved_end = max(self._reserved_end, end)

    def _cover_reserved(self) -> None:
        """What was handed out belongs to the file, even if its last bytes are left out."""
        end, self._reserved_end = self._reserved_end, 0
        if end and self.data_storage is self.storage and self.storage.size() < end:
            self.storage.truncate(end)

    def write_metadata(self, kind: str, offset: int, data: bytes | memoryview) -> None:
        self.guard.check(offset, len(data), kind)
        self._unflushed = True
        self.storage.pwrite(offset, data)

    def _write_header(self, offset: int, data: bytes) -> None:
        self._unflushed = True
        self.storage.pwrite(offset, data)

    def release(self, host: int, length: int) -> None:
        """Give the clusters of a byte range back at the next commit."""
        bits = self.header.cluster_bits
        first, last = host >> bits, (host + length - 1) >> bits
        self.refcounts.release(first, last - first + 1)

    # Order

    def barrier(self) -> None:
        """Return when all writes so far are durable."""
        if self._bulk or not self._unflushed:
            return
        try:
            if self.data_storage is not self.storage:
                self.data_storage.flush()
            self.storage.flush()
        except ImageError as error:
            # What the kernel has dropped cannot be written again: stop here.
            self.broken = f"a flush failed, so nothing more is written: {error.message}"
            raise
        self._unflushed = False

    @contextmanager
    def bulk(self) -> Iterator[None]:
        """Write a new, unpublished file: no barriers until the end."""
        self._bulk += 1
        try:
            yield
        finally:
            self._bulk -= 1
        self.commit()

    def drain(self) -> None:
        if self.drains:
            with self.lock:
                for drain in self.drains:
                    drain()

    def relieve(self) -> None:
        """Commit early when too much waits in memory."""
        freed = self._refcounts is not None and len(self._refcounts.released) > _RELEASED
        if freed or self.mapping.crowded(_DIRTY_BYTES):
            self.commit()

    def commit(self) -> None:
        """Bring all changes to disk, in order; returns when they are durable."""
        if self.broken:
            raise ImageIoError(self.broken)
        if self._refcounts is None:
            self.barrier()
            return
        self.drain()
        self._cover_reserved()
        self._write_new_blocks()
        self._write_raised_counts()
        self._write_links()
        self.barrier()
        self._lower_counts()

    def _write_new_blocks(self) -> None:
        refcounts = self.refcounts
        fresh = [block for block in refcounts.dirty_blocks() if block.fresh]
        moved = refcounts.table.fresh
        if not fresh and not moved:
            return
        for block in fresh:
            self._write_table(REFBLOCK, block)
        if moved:
            self._write_table(REFTABLE, refcounts.table)
        self.barrier()
        for block in fresh:
            block.fresh = False
        if moved:
            table = refcounts.table
            self.header.reftable_offset = table.offset
            self.header.reftable_clusters = len(table.words) * 8 >> self.header.cluster_bits
            self.header_store.write_first_sector()
            table.fresh = False

    def _write_raised_counts(self) -> None:
        refcounts = self.refcounts
        for block in refcounts.dirty_blocks():
            self._write_table(REFBLOCK, block)
        if refcounts.table.dirty:
            self._write_table(REFTABLE, refcounts.table)
        for table in self.mapping.dirty_tables():
            if table.fresh:
                self._write_table(ACTIVE_L2, table)

    def _write_links(self) -> None:
        tables = self.mapping.dirty_tables()
        l1 = self.mapping.l1
        if not tables and not l1.dirty:
            return
        self.barrier()
        for table in tables:
            self._write_table(ACTIVE_L2, table)
        if l1.dirty:
            self._write_table(ACTIVE_L1, l1)
        self.mapping.settle()

    def _lower_counts(self) -> None:
        refcounts = self.refcounts
        if not refcounts.released:
            return
        self._seal()
        self.freed(refcounts.settle())
        for block in refcounts.dirty_blocks():
            self._write_table(REFBLOCK, block)

    def _seal(self) -> None:
        for seal in self.seals:
            seal()

    def freed(self, runs: list[tuple[int, int]]) -> None:
        """Give freed clusters back to the host, where the storage can."""
        bits = self.header.cluster_bits
        for first, count in runs:
            self.storage.punch_hole(first << bits, count << bits)

    def _write_table(self, kind: str, table: Table) -> None:
        offset, data = table.changed()
        self.write_metadata(kind, offset, data)
        table.clean()
