"""The qcow2 driver: an open image, its capabilities, and what they lead to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

from wirt.errors import CorruptImage, ImageIoError, OutOfBounds, UnsupportedImage, UsageError
from wirt.image.base import (
    Amendable,
    BitmapInfo,
    Checkable,
    CheckResult,
    CompressedWriter,
    DirectAllocator,
    Extent,
    HasBitmaps,
    HasKeys,
    HasSnapshots,
    OpenOptions,
    Overlay,
    Resizable,
    SnapshotInfo,
    Storage,
)
from wirt.image.formats.qcow2 import bitmap as persistent
from wirt.image.formats.qcow2.header import (
    CORRUPT,
    CRYPT_AES,
    CRYPT_NONE,
    DIRTY,
    KNOWN_AUTOCLEAR,
    ZSTD,
)
from wirt.image.formats.qcow2.mapping import Mapping as ClusterMapping
from wirt.image.formats.qcow2.mapping import load_l1
from wirt.image.formats.qcow2.reader import Cipher
from wirt.image.formats.qcow2.view import Qcow2View, SnapshotView
from wirt.image.formats.qcow2.volume import Volume
from wirt.image.formats.qcow2.writer import Bytes, Writer
from wirt.image.formats.qcow2.zeroes import write_zeroes


class Qcow2Image(
    Qcow2View,
    DirectAllocator,
    CompressedWriter,
    Overlay,
    Amendable,
    Checkable,
    HasKeys,
    HasSnapshots,
    Resizable,
    HasBitmaps,
):
    """The active disk. ``backing`` and ``attach_data_file`` are for whoever opens the chain."""

    def __init__(self, volume: Volume, options: OpenOptions) -> None:
        super().__init__(volume, volume.mapping, volume.header.size)
        self.compression_unit = volume.header.cluster_size
        self.compression = "zstd" if volume.header.compression == ZSTD else "deflate"
        self.writable = options.writable
        self._writer: Writer | None = None
        self._recorder: persistent.Recorder | None = None
        self._refuse_unsafe(options)
        self._encipher: Cipher | None = None
        if volume.header.crypt_method != CRYPT_NONE:
            self._open_ciphers(options.secret)

    def _open_ciphers(self, secret: bytes | None) -> None:
        from wirt.image.formats.qcow2.crypt import ciphers, locked

        self._encipher, self._reader.decipher = locked, locked
        if secret is not None:
            self._encipher, self._reader.decipher = ciphers(self.volume, secret)

    def _refuse_unsafe(self, options: OpenOptions) -> None:
        if not options.writable or options.allow_dirty:
            return
        if self.header.incompatible & CORRUPT:
            raise CorruptImage(
                "qcow2: Image is corrupt; cannot be opened read/write",
                hint="repair it: wirt img check --repair all",
            )
        if self.header.incompatible & DIRTY:
            raise CorruptImage(
                "the image was not closed properly, so its refcounts may be wrong",
                hint="repair it: wirt img check --repair all",
            )

    # The chain

    @property
    def backing_name(self) -> str | None:
        return self.header.backing_name

    @property
    def backing_format(self) -> str | None:
        return self.header.backing_format

    @property
    def data_file_name(self) -> str | None:
        return self.header.data_file_name

    @property
    def needs_data_file(self) -> bool:
        """True while guest data lies in a file that nobody has attached."""
        return self.header.has_data_file and self.volume.data_storage is self.storage

    def attach_data_file(self, storage: Storage) -> None:
        self.volume.data_storage = storage

    @property
    def direct_storage(self) -> Storage:  # type: ignore[override]  # follows the data file
        return self.volume.data_storage

    def pread(self, offset: int, length: int) -> bytes:
        self._require_data_file()
        return super().pread(offset, length)

    def pread_into(self, offset: int, buffer: memoryview) -> None:
        self._require_data_file()
        super().pread_into(offset, buffer)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        self._require_data_file()
        return super().extents(offset, length)

    def _require_data_file(self) -> None:
        if self.needs_data_file:
            raise ImageIoError(
                "the image's external data file is not open",
                hint="allow it to be opened, or name it",
            )

    # Writing

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """Yield the writer for one change, under the lock."""
        if not self.writable or self.storage.read_only:
            raise ImageIoError("the image is open for reading only")
        self._require_data_file()
        with self.volume.changing():
            self.volume.register_metadata()
            if self._writer is None:
                self._writer = self._first_write()
            yield self._writer

    def _first_write(self) -> Writer:
        unknown = self.header.autoclear & ~KNOWN_AUTOCLEAR
        if unknown:
            self.header.autoclear &= ~unknown
            self.volume.header_store.write_first_sector()
        if self.header.crypt_method == CRYPT_AES:
            raise UnsupportedImage("images with the legacy AES encryption are read only")
        writer = Writer(self.volume, self._reader)
        writer.encipher = self._encipher
        return writer

    def pwrite(self, offset: int, data: Bytes) -> None:
        length = len(memoryview(data).cast("B"))
        self._check_range(offset, length)
        with self.writing() as writer:
            self._record(offset, length)
            writer.write(offset, data)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self._check_range(offset, length)
        with self.writing() as writer:
            self._record(offset, length)
            write_zeroes(writer, offset, length, self.virtual_size, unmap=unmap)

    def discard(self, offset: int, length: int) -> None:
        self.write_zeroes(offset, length, unmap=True)

    def flush(self) -> None:
        if self.writable:
            with self.volume.changing():
                self.volume.commit()

    @property
    def can_allocate(self) -> bool:
        return self._reader.decipher is None

    def allocate(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        self._check_range(offset, length)
        end = offset + length
        cluster = self.header.cluster_size
        if offset % cluster or (end % cluster and end != self.virtual_size):
            raise OutOfBounds("a direct write must cover whole clusters", offset=offset)
        if not self.can_allocate:
            raise UnsupportedImage("an encrypted image cannot be written directly")
        with self.writing() as writer:
            self._record(offset, length)
            yield from writer.allocate(offset, length)

    def bulk_write(self) -> AbstractContextManager[None]:
        return self.volume.bulk()

    def write_compressed(
        self, offset: int, packed: bytes | None, plain: bytes | memoryview
    ) -> None:
        with self.writing() as writer:
            self._store_packed(writer, offset, packed, plain)

    def write_units(self, units: Sequence[tuple[int, bytes, memoryview]]) -> None:
        with self.writing() as writer:  # once for all: it costs as much as storing one
            for offset, packed, plain in units:
                self._store_packed(writer, offset, packed, plain)

    def _store_packed(
        self, writer: Writer, offset: int, packed: bytes | None, plain: bytes | memoryview
    ) -> None:
        cluster = self.header.cluster_size
        self._check_range(offset, min(cluster, self.virtual_size - offset))
        if offset % cluster:
            raise OutOfBounds("a compressed write must start at a cluster", offset=offset)
        if packed is None or len(packed) >= cluster:
            self.pwrite(offset, plain[: self.virtual_size - offset])
            return
        self._record(offset, cluster)
        writer.write_packed(offset, packed)

    def check(self, *, repair: str = "") -> CheckResult:
        from wirt.image.formats.qcow2.check import check

        with self.volume.lock:
            self.flush()
            return check(self.volume, repair=repair)

    def resize(self, size: int, *, preallocation: str = "off") -> None:
        from wirt.image.formats.qcow2.create import PREALLOCATIONS
        from wirt.image.formats.qcow2.resize import resize

        if preallocation not in PREALLOCATIONS:
            raise UsageError(f"unknown preallocation {preallocation!r}")
        old = self.virtual_size
        if size < old and preallocation != "off":
            raise UsageError("Preallocation can't be used for shrinking an image")
        with self.writing() as writer:
            self._save_bitmaps()
            if size > old:
                persistent.fit_bitmaps(self.volume, size)
            resize(writer, old, size, preallocation)
            self.virtual_size = size
            if size < old:
                persistent.fit_bitmaps(self.volume, size)

    def preallocate(self, mode: str) -> None:
        """Allocate the whole disk of a new, empty image: ``metadata``, ``falloc``, ``full``."""
        from wirt.image.formats.qcow2.resize import preallocate, preallocate_behind

        act = preallocate_behind if self.info().backing_name else preallocate
        with self.bulk_write(), self.writing() as writer:
            act(writer, 0, self.virtual_size, mode)

    def amend(self, options: Mapping[str, str]) -> None:
        """Change options as ``qemu-img amend -o``; the size by ``resize``."""
        from wirt.image.formats.qcow2.amend import amend

        with self.writing() as writer:
            self._save_bitmaps()
            amend(writer, options)

    def set_backing(self, name: str | None, backing_format: str | None) -> None:
        from wirt.image.formats.qcow2.amend import set_backing

        with self.writing():
            set_backing(self.volume, name, backing_format)

    def make_empty(self) -> None:
        from wirt.image.formats.qcow2.amend import make_empty

        with self.writing():
            self._record(0, self.virtual_size)
            self._save_bitmaps()
            make_empty(self.volume)

    # Passphrases

    def add_key(self, secret: bytes, new: bytes, *, iter_milliseconds: int = 2000) -> int:
        from wirt.image.formats.qcow2.crypt import KeyClusters
        from wirt.image.luks import add_key

        with self.writing():
            area = KeyClusters(self.volume)
            return add_key(area, secret, new, iter_milliseconds=iter_milliseconds)

    def remove_key(self, secret: bytes) -> int:
        from wirt.image.formats.qcow2.crypt import KeyClusters
        from wirt.image.luks import remove_key

        with self.writing():
            return remove_key(KeyClusters(self.volume), secret)

    # Snapshots

    def snapshots(self) -> Sequence[SnapshotInfo]:
        from wirt.image.formats.qcow2.snapshot import list_snapshots

        return [snapshot.describe() for snapshot in list_snapshots(self.volume)]

    def snapshot_create(self, name: str) -> None:
        from wirt.image.formats.qcow2.snapshot import create_snapshot

        with self.writing():
            create_snapshot(self.volume, name)

    def snapshot_apply(self, name: str) -> None:
        from wirt.image.formats.qcow2.snapshot import (
            apply_snapshot,
            find_snapshot,
            list_snapshots,
        )

        with self.writing():
            self._record(0, self.virtual_size)
            self._save_bitmaps()
            size = find_snapshot(list_snapshots(self.volume), name).virtual_size
            persistent.fit_bitmaps(self.volume, max(size, self.virtual_size))
            apply_snapshot(self.volume, name)
            self.virtual_size = self.header.size

    def snapshot_delete(self, name: str) -> None:
        from wirt.image.formats.qcow2.snapshot import delete_snapshot

        with self.writing():
            delete_snapshot(self.volume, name)

    def snapshot_view(self, name: str) -> SnapshotView:
        """Return the disk of a snapshot, by id or name."""
        from wirt.image.formats.qcow2.snapshot import find_snapshot, list_snapshots

        chosen = find_snapshot(list_snapshots(self.volume), name)
        l1 = load_l1(self.storage, chosen.l1_offset, chosen.l1_size)
        mapping = ClusterMapping(self.storage, self.header, l1, self.volume.tick)
        view = SnapshotView(self.volume, mapping, chosen.virtual_size)
        view.backing = self.backing
        view.share_cipher(self)
        return view

    # Bitmaps

    @property
    def can_have_bitmaps(self) -> bool:
        return self.header.version >= 3

    def bitmaps(self) -> Sequence[BitmapInfo]:
        self._save_bitmaps()
        return [bitmap.describe() for bitmap in persistent.read_bitmaps(self.volume)]

    def bitmap_add(self, name: str, *, granularity: int = 0, enabled: bool = True) -> None:
        with self._changing_bitmaps():
            persistent.add_bitmap(self.volume, name, granularity, enabled=enabled)

    def bitmap_remove(self, name: str) -> None:
        with self._changing_bitmaps():
            persistent.remove_bitmap(self.volume, name)

    def bitmap_clear(self, name: str) -> None:
        with self._changing_bitmaps():
            persistent.clear_bitmap(self.volume, name)

    def bitmap_enable(self, name: str, *, enabled: bool = True) -> None:
        with self._changing_bitmaps():
            persistent.enable_bitmap(self.volume, name, enabled=enabled)

    def bitmap_merge(self, name: str, source: HasBitmaps, source_name: str) -> None:
        with self._changing_bitmaps():
            persistent.mark_ranges(self.volume, name, list(source.bitmap_dirty(source_name)))

    def bitmap_dirty(self, name: str) -> Iterator[tuple[int, int]]:
        self._save_bitmaps()
        return persistent.dirty_ranges(self.volume, name)

    @contextmanager
    def _changing_bitmaps(self) -> Iterator[None]:
        with self.writing():
            self._save_bitmaps()
            yield

    def _record(self, offset: int, length: int) -> None:
        """Mark a range, which is about to be written, in the enabled bitmaps."""
        if self._recorder is None:
            self._recorder = persistent.Recorder(self.volume)
        self._recorder.record(offset, length)

    def _save_bitmaps(self) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            with self.volume.lock:
                recorder.store()

    def close(self) -> None:
        """Write what waits, then close storage, data file and backing chain."""
        try:
            # Why nothing may be written any more was said when it happened.
            if not self.volume.broken:
                self._save_bitmaps()
                self.flush()
        finally:
            if self.volume.data_storage is not self.storage:
                self.volume.data_storage.close()
            super().close()
