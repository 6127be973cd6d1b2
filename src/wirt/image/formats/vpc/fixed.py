"""Fixed disks: the disk's bytes, and a footer behind them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from wirt.errors import CorruptImage, OutOfBounds, UnsupportedImage
from wirt.image.base import DirectAllocator, Extent, ImageInfo, Resizable, Storage
from wirt.image.formats.mapped import SECTOR, MappedImage, stored_size, verbatim
from wirt.image.formats.vpc.structures import Footer

_FILL = bytes(1 << 20)


class FixedVpcImage(MappedImage, DirectAllocator, Resizable):
    format_name = "vpc"

    def __init__(self, storage: Storage, footer: Footer) -> None:
        self.storage = self.direct_storage = storage
        self.footer = footer
        inside = max(0, storage.size() - SECTOR)
        self.virtual_size = footer.virtual_size
        if self.virtual_size > inside:
            raise CorruptImage(f"the footer says {footer.size} bytes, the file has {inside}")

    def _run(self, offset: int, limit: int) -> Extent:
        return verbatim(offset, limit, self.storage, offset)

    def info(self) -> ImageInfo:
        return ImageInfo(
            "vpc", self.virtual_size, stored_size(self.storage), specific={"subformat": "fixed"}
        )

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._check(offset, memoryview(data).nbytes)
        self.storage.pwrite(offset, data)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self._check(offset, length)
        if unmap and self.storage.punch_hole(offset, length):
            return
        for at in range(offset, offset + length, len(_FILL)):
            self.storage.pwrite(at, memoryview(_FILL)[: offset + length - at])

    def discard(self, offset: int, length: int) -> None:
        self.write_zeroes(offset, length)

    def flush(self) -> None:
        self.storage.flush()

    @property
    def can_allocate(self) -> bool:
        return True

    def allocate(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        self._check(offset, length)
        yield offset, offset, length

    @contextmanager
    def bulk_write(self) -> Iterator[None]:
        yield
        self.flush()

    def resize(self, size: int, *, preallocation: str = "off") -> None:
        """Put a new footer at the new end, durably, before the old one goes."""
        if preallocation != "off":
            raise UnsupportedImage("vpc images have no preallocation")
        if size < 0 or size % SECTOR:
            raise OutOfBounds(f"a disk of {size} bytes is not made of sectors")
        old = self.virtual_size
        if size == old:
            return
        footer = replace(self.footer, size=size)
        end = self.storage.size()
        self.storage.flush()
        self.storage.pwrite(size, footer.pack())
        self.storage.flush()
        self.footer, self.virtual_size = Footer.parse(footer.pack()) or footer, size
        if size > old:
            self.storage.pwrite(old, bytes(min(size, end) - old))
        else:
            self.storage.truncate(size + SECTOR)
        self.storage.flush()
