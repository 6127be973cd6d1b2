"""luks: a disk behind a LUKS1 key header, as cryptsetup and QEMU make it.

Layout and key slots are those of ``wirt.image.luks``. The payload is the disk, enciphered in
sectors of 512 bytes that are counted from its own start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from wirt.errors import ImageAccessDenied, ImageIoError, OutOfBounds, UsageError
from wirt.image.base import (
    Extent,
    ExtentKind,
    Format,
    ImageInfo,
    OpenOptions,
    Resizable,
    Storage,
    WritableImage,
)
from wirt.image.formats.mapped import SECTOR, stored_size
from wirt.image.luks import HEADER_SIZE, MAGIC, LuksHeader, LuksOptions, format_luks, unlock
from wirt.image.sector_cipher import SectorCipher

_PIECE = 1 << 20


class LuksImage(WritableImage, Resizable):
    """Without a passphrase it can be described, but neither read nor written."""

    format_name = "luks"

    def __init__(self, storage: Storage, options: OpenOptions) -> None:
        self.storage = storage
        self.writable = options.writable
        self.header = LuksHeader.parse(storage.pread(0, HEADER_SIZE))
        self._start = self.header.payload_offset * SECTOR
        self._cipher: SectorCipher | None = None
        if options.secret is not None:
            self._cipher = unlock(storage.pread, options.secret)[1]
        self.virtual_size = max(0, storage.size() - self._start) // SECTOR * SECTOR

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.virtual_size:
            raise OutOfBounds(f"{length} bytes at {offset:#x} are not inside the disk")

    def _unlocked(self) -> SectorCipher:
        if self._cipher is None:
            raise ImageAccessDenied("the image is encrypted", hint="give its passphrase")
        return self._cipher

    def pread(self, offset: int, length: int) -> bytes:
        self._check(offset, length)
        before = offset % SECTOR
        span = -(-(before + length) // SECTOR) * SECTOR
        first = offset - before
        data = self.storage.pread(self._start + first, span).ljust(span, b"\0")
        return self._unlocked().decrypt(first // SECTOR, data)[before : before + length]

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """All is data: zeros look like anything else once they are enciphered."""
        self._check(offset, length)
        if length:
            yield Extent(offset, length, ExtentKind.DATA)

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        self._check(offset, len(view))
        if not self.writable:
            raise ImageIoError("the image is open for reading only")
        before = offset % SECTOR
        first, end = offset - before, offset + len(view)
        after = -end % SECTOR
        content = bytes(view)
        if before:
            content = self.pread(first, before) + content
        if after:
            content += self.pread(end, after)
        self.storage.pwrite(self._start + first, self._unlocked().encrypt(first // SECTOR, content))

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self._check(offset, length)
        for at in range(offset, offset + length, _PIECE):
            self.pwrite(at, bytes(min(_PIECE, offset + length - at)))

    def discard(self, offset: int, length: int) -> None:
        self.write_zeroes(offset, length)

    def flush(self) -> None:
        if self.writable:
            self.storage.flush()

    def resize(self, size: int, *, preallocation: str = "off") -> None:
        from wirt.image.formats.raw import preallocate

        old = self.virtual_size
        size = -(-size // SECTOR) * SECTOR
        self.storage.truncate(self._start + size)
        self.virtual_size = size
        if size > old:
            preallocate(self.storage, self._start + old, self._start + size, preallocation)

    def info(self) -> ImageInfo:
        return ImageInfo(
            "luks",
            self.virtual_size,
            stored_size(self.storage),
            encrypted=True,
            specific=self.header.describe(),
        )


class LuksFormat(Format):
    name = "luks"
    suffixes = (".luks",)
    images = (LuksImage,)

    def probe(self, storage: Storage) -> bool:
        return storage.pread(0, 8) == MAGIC + b"\0\1"

    def open(self, storage: Storage, options: OpenOptions) -> LuksImage:
        return LuksImage(storage, options)

    def create(self, storage: Storage, size: int, options: Mapping[str, str]) -> None:
        """``secret`` is the passphrase itself; the other options are QEMU's."""
        from wirt.image.formats.raw import preallocate

        secret = options.get("secret")
        if secret is None:
            raise UsageError("Parameter 'key-secret' is required for cipher")
        parsed = LuksOptions.parse(options, prefix="")
        region, _ = format_luks(secret.encode("utf-8", "surrogateescape"), parsed)
        end = len(region) + -(-size // SECTOR) * SECTOR
        storage.truncate(end)
        storage.pwrite(0, region)
        preallocate(storage, len(region), end, options.get("preallocation", "off"))


FORMAT = LuksFormat()
