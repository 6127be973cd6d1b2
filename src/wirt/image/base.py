"""What a disk image can do: small interfaces by capability.

::

    Storage          positional bytes: a file, a host device, a URL, memory
    Format           one per file format: probe, open, create
    Image            read: pread, extents, info
    ├── WritableImage    pwrite, write_zeroes, discard, flush
    ├── Resizable        resize
    ├── Checkable        check, repair
    ├── Amendable        change creation options later
    ├── HasKeys          passphrases of an encrypted image
    ├── HasSnapshots     internal snapshots
    ├── HasBitmaps       persistent dirty bitmaps
    ├── Overlay          set_backing, make_empty
    └── CompressedWriter write_compressed

Position, never cursor: every read and write names its offset, so that threads can share
one image. All offsets and lengths are bytes. Whatever bytes an image holds, the only
errors that leave this package are those of ``wirt.errors.ImageError``.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar, Self

import msgspec

from wirt.errors import UnsupportedImage


class ExtentKind(enum.Enum):
    """The allocation state of a run of guest bytes."""

    DATA = "data"
    """Stored bytes."""
    ZERO = "zero"
    """Reads as zeros by the image's own word; nothing need be stored."""
    HOLE = "hole"
    """Not allocated in this image: its backing image shows through, or zeros without one."""


class Extent(msgspec.Struct, frozen=True):
    """A run of guest bytes in one allocation state, and where its bytes lie.

    ``storage`` and ``storage_offset`` are set when the run lies there verbatim, so that a
    copy may be made by the kernel (``copy_file_range``); they are None for compressed or
    encrypted runs. ``depth`` counts from the image asked (0) down the backing chain.
    """

    offset: int
    length: int
    kind: ExtentKind
    depth: int = 0
    storage: Storage | None = None
    storage_offset: int | None = None
    compressed: bool = False
    reserved_offset: int | None = None
    """Where the file has room for a run that does not show what lies there."""

    @property
    def end(self) -> int:
        return self.offset + self.length


class Budget(msgspec.Struct, frozen=True):
    """What an image from a stranger may cost. The defaults suit untrusted input.

    ``expansion`` bounds the guest bytes that may be produced from one image as a multiple
    of the bytes stored for it, beyond ``expansion_floor`` bytes that are always allowed:
    a 12 MiB file can declare 2 TiB of compressed data.
    """

    chain_depth: int = 200
    metadata_bytes: int = 64 << 20
    expansion: int = 1024
    expansion_floor: int = 1 << 30
    seconds: float = float("inf")
    key_memory: int = 1 << 30
    """What deriving a key from a passphrase may take; cryptsetup makes images that take this."""


class OpenGate(ABC):
    """Decides whether a file that an *image* names (not the user) may be opened."""

    @abstractmethod
    def allows(self, name: str, *, role: str, referrer: str) -> bool:
        """``role`` is ``backing``, ``data-file``, ``extent`` or ``parent``."""


class Deny(OpenGate):
    """Open nothing but the named file: the default for foreign images."""

    def allows(self, name: str, *, role: str, referrer: str) -> bool:
        return False


class AllowLocalFiles(OpenGate):
    """Open plain file names, never protocols (``nbd:``, ``json:`` …): for one's own images."""

    def allows(self, name: str, *, role: str, referrer: str) -> bool:
        head = name.split("/", 1)[0]
        return ":" not in head


class Storage(ABC):
    """Positional bytes. ``name`` is how errors call it."""

    name: str
    read_only: bool
    is_remote: ClassVar[bool] = False
    """Reading waits for somebody else: worth doing ahead, in threads."""

    @abstractmethod
    def size(self) -> int: ...

    @abstractmethod
    def pread(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes, fewer only at the end. Raises ImageIoError."""

    def pread_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``, with zeros behind the end. Raises ImageIoError."""
        data = self.pread(offset, len(buffer))
        buffer[: len(data)] = data
        if len(data) < len(buffer):
            buffer[len(data) :] = bytes(len(buffer) - len(data))

    @abstractmethod
    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of ``data``. Raises ImageIoError or ImageNoSpace."""

    @abstractmethod
    def truncate(self, size: int) -> None: ...

    def begin_flush(self) -> None:  # noqa: B027 - a storage need not have a way
        """Start to put on the disk what was written, without waiting; ``flush`` waits less then."""

    @abstractmethod
    def flush(self) -> None:
        """Return when all that was written survives a power cut."""

    @abstractmethod
    def close(self) -> None: ...

    def fileno(self) -> int | None:
        """A descriptor for ``copy_file_range``, where there is one."""
        return None

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """Yield (offset, length, is_data) runs; without better knowledge all is data."""
        yield offset, length, True

    def punch_hole(self, offset: int, length: int) -> bool:
        """Free the range so that it reads as zeros; False where that cannot be done."""
        return False

    def reserve(self, offset: int, length: int) -> bool:
        """Take the space for the range, whose bytes stay; False where that cannot be done.

        Raises ImageNoSpace, ImageIoError.
        """
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ImageInfo(msgspec.Struct, frozen=True):
    """What ``wirt img info`` shows of one image; ``specific`` is the format's own part."""

    format: str
    virtual_size: int
    allocated_size: int
    cluster_size: int = 0
    backing_name: str = ""
    backing_format: str = ""
    encrypted: bool = False
    dirty: bool = False
    specific: Mapping[str, object] = msgspec.field(default_factory=dict)


class Image(ABC):
    """An open image: a guest disk that can be read."""

    format_name: ClassVar[str]

    storage: Storage
    virtual_size: int
    backing: Image | None = None
    """The next image of the chain, already open, or None."""

    @abstractmethod
    def pread(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` guest bytes. Raises OutOfBounds past the virtual size."""

    def pread_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with guest bytes, as ``pread``; a large reader keeps its buffer."""
        buffer[:] = self.pread(offset, len(buffer))

    @abstractmethod
    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield this image's own extents of the range, in order and without gaps.

        Does not descend: a HOLE is for the caller to look up in ``backing``
        (``wirt.image.extents.chain_extents`` does).
        """

    @abstractmethod
    def info(self) -> ImageInfo: ...

    def close(self) -> None:
        """Close this image's storage and its backing chain."""
        self.storage.close()
        if self.backing is not None:
            self.backing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class WritableImage(Image):
    """An image that can be written in place."""

    new_is_zero: ClassVar[bool] = True
    """A new one reads as zeros."""
    writes_in_any_order: ClassVar[bool] = False
    """Where bytes end up does not depend on what came before, so threads may write at once."""

    @abstractmethod
    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None: ...

    @abstractmethod
    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None: ...

    @abstractmethod
    def discard(self, offset: int, length: int) -> None:
        """Drop the range's storage; it then reads as zeros (never as the backing image)."""

    @abstractmethod
    def flush(self) -> None:
        """Return when every write before survives a power cut."""


class CompressedWriter(Image):
    """A format whose clusters can be stored compressed; each cluster is written once."""

    compression_unit: int
    only_compressed: ClassVar[bool] = False
    """Every cluster is compressed, whether asked for or not."""
    compression: str
    """The codec, as ``wirt.image.compressors`` calls it: ``deflate``, ``zlib`` or ``zstd``."""

    @abstractmethod
    def write_compressed(
        self, offset: int, packed: bytes | None, plain: bytes | memoryview
    ) -> None:
        """Store one unit at ``offset``: ``packed`` if given and smaller, else ``plain``."""

    def write_units(self, units: Sequence[tuple[int, bytes, memoryview]]) -> None:
        """Store many units (offset, packed, plain), in order."""
        for offset, packed, plain in units:
            self.write_compressed(offset, packed, plain)


class DirectAllocator(WritableImage):
    """A format that can hand out places in a storage, for the kernel to copy into."""

    direct_storage: Storage
    """Where allocated clusters lie: the image's own storage or its external data file."""

    @property
    @abstractmethod
    def can_allocate(self) -> bool:
        """False where guest bytes are not stored verbatim (encryption)."""

    @abstractmethod
    def allocate(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Yield (guest offset, offset in ``direct_storage``, length) covering the range.

        ``offset`` must lie on a cluster; ``length`` too, except at the end of the disk.
        Every piece must be filled (zeros where nothing is copied) before the next call
        into the image: until then the guest would read what the file held there.
        """

    @abstractmethod
    def bulk_write(self) -> AbstractContextManager[None]:
        """Within it nothing is ordered for power cuts, at its end everything is durable.

        Only for a new file that nobody knows yet: a cut in between leaves garbage.
        """


class Resizable(Image):
    @abstractmethod
    def resize(self, size: int, *, preallocation: str = "off") -> None:
        """Set the virtual size; shrinking drops what lies beyond."""


class Overlay(WritableImage):
    """An image whose link to its backing image can be changed, in place and at once."""

    @abstractmethod
    def set_backing(self, name: str | None, backing_format: str | None) -> None:
        """Store another backing image (None: none); the guest's bytes may change by it."""

    @abstractmethod
    def make_empty(self) -> None:
        """Drop all clusters, so that the backing image shows everywhere."""

    def accept_backing(self) -> None:
        """Store that the backing image, as it is now, is the one that this image is made from.

        Only some formats keep an identity that a write to the backing image changes.
        """


class Amendable(Image):
    @abstractmethod
    def amend(self, options: Mapping[str, str]) -> None:
        """Change options as ``qemu-img amend -o``. Raises UsageError for what is fixed."""


class HasKeys(Image):
    """An encrypted image that several passphrases may open."""

    @abstractmethod
    def add_key(self, secret: bytes, new: bytes, *, iter_milliseconds: int = 2000) -> int:
        """Let ``new`` open the image too; return the number of its slot. Raises ImageError."""

    @abstractmethod
    def remove_key(self, secret: bytes) -> int:
        """Let ``secret`` open it no more. Raises UsageError if it is the last one."""


class CheckResult(msgspec.Struct):
    """What a check found; counts are clusters (or the format's unit)."""

    corruptions: int = 0
    leaks: int = 0
    corruptions_fixed: int = 0
    leaks_fixed: int = 0
    total_clusters: int = 0
    allocated_clusters: int = 0
    fragmented_clusters: int = 0
    compressed_clusters: int = 0
    image_end_offset: int = 0
    messages: list[str] = msgspec.field(default_factory=list)


class Checkable(Image):
    @abstractmethod
    def check(self, *, repair: str = "") -> CheckResult:
        """``repair`` is empty, ``leaks`` or ``all``."""


class SnapshotInfo(msgspec.Struct, frozen=True):
    id: str
    name: str
    vm_state_size: int
    date_seconds: int
    date_nanoseconds: int
    vm_clock_nanoseconds: int
    virtual_size: int
    icount: int | None = None


class HasSnapshots(Image):
    @abstractmethod
    def snapshots(self) -> Sequence[SnapshotInfo]: ...

    @abstractmethod
    def snapshot_create(self, name: str) -> None: ...

    @abstractmethod
    def snapshot_apply(self, name: str) -> None: ...

    @abstractmethod
    def snapshot_delete(self, name: str) -> None: ...

    def snapshot_view(self, name: str) -> Image:
        """Return the disk of a snapshot, by id or name. Closing this image closes it."""
        raise UnsupportedImage(f"snapshots of {self.format_name} images cannot be read")


class BitmapInfo(msgspec.Struct, frozen=True):
    name: str
    granularity: int
    enabled: bool
    in_use: bool


class HasBitmaps(Image):
    @property
    @abstractmethod
    def can_have_bitmaps(self) -> bool:
        """False where this version of the format has no place for them."""

    @abstractmethod
    def bitmaps(self) -> Sequence[BitmapInfo]: ...

    @abstractmethod
    def bitmap_add(self, name: str, *, granularity: int = 0, enabled: bool = True) -> None:
        """Add an empty bitmap; ``granularity`` 0 means the format's default."""

    @abstractmethod
    def bitmap_remove(self, name: str) -> None: ...

    @abstractmethod
    def bitmap_clear(self, name: str) -> None: ...

    @abstractmethod
    def bitmap_enable(self, name: str, *, enabled: bool = True) -> None:
        """Let later writes be recorded in the bitmap, or not."""

    @abstractmethod
    def bitmap_merge(self, name: str, source: HasBitmaps, source_name: str) -> None:
        """Mark in ``name`` all that ``source_name`` of ``source`` (or this image) marks."""

    @abstractmethod
    def bitmap_dirty(self, name: str) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of the guest ranges that the bitmap marks, in order."""


class Related(ABC):
    """Opens the files that an image names, as far as the gate allows them.

    ``wirt.image.open`` makes one for each image; a format uses it and never opens a name
    by itself. Names are those in the image; relative ones mean beside the image.
    """

    @abstractmethod
    def storage(self, name: str, *, role: str) -> Storage:
        """Open an ``extent`` with the image's own mode. Raises ImageError."""

    @abstractmethod
    def folder(self, name: str, *, role: str, most: int) -> Mapping[str, int]:
        """Return the sizes of the files in a folder. Raises OutOfBounds beyond ``most`` files."""

    @abstractmethod
    def image(self, names: Sequence[str], *, format: str = "") -> Image:  # noqa: A002 - see find_format
        """Open the first of ``names`` that exists, read-only, as the parent.

        Without ``format`` its bytes decide. Raises ImageError.
        """


class OpenOptions(msgspec.Struct, frozen=True):
    """How to open: everything a format may need beside its storage."""

    writable: bool = False
    gate: OpenGate = msgspec.field(default_factory=Deny)
    budget: Budget = msgspec.field(default_factory=Budget)
    with_backing: bool = True
    secret: bytes | None = None
    """Passphrase of an encrypted image."""
    allow_dirty: bool = False
    """Open although the image says it was not closed (check and repair do)."""
    related: Related | None = None
    """Opens parents and extents; without it an image that needs them is refused."""


class Format(ABC):
    """A file format. One instance each, listed in ``wirt.image.registry``."""

    name: ClassVar[str]
    """As ``qemu-img -f`` names it."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    images: ClassVar[tuple[type[Image], ...]] = ()
    """What ``open`` may return: the interfaces of these classes are what the format can do."""
    bundle_file: ClassVar[str] = ""
    """A directory with this file in it is an image: opening it opens this file."""
    has_backing: ClassVar[bool] = False
    """An image may show another one through (a backing file, a parent)."""
    has_compression: ClassVar[bool] = False
    """Compressed data are read."""

    def companions(self, path: str, size: int, options: Mapping[str, str]) -> Sequence[str]:
        """Return the paths of the further files that ``create`` makes beside ``path``."""
        return ()

    @abstractmethod
    def probe(self, storage: Storage) -> bool:
        """True if the bytes claim to be of this format. Reads little, raises nothing."""

    @abstractmethod
    def open(self, storage: Storage, options: OpenOptions) -> Image:
        """Open; on an error the caller still owns ``storage``. Raises ImageError."""

    def create(self, storage: Storage, size: int, options: Mapping[str, str]) -> None:
        """Write an empty image of ``size`` guest bytes; ``options`` as ``qemu-img -o``."""
        raise UnsupportedImage(f"{self.name} images can be read but not created")


class NamedFormat(Format):
    """A format whose images are named with a prefix, not stored in a file of their own."""

    prefix: ClassVar[str]

    @abstractmethod
    def open_name(self, name: str, options: OpenOptions) -> Image:
        """Open what ``name``, prefix included, means. Raises ImageError, UsageError."""
