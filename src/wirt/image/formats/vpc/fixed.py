"""Fixed disks: the disk's bytes, and a footer behind them."""

from __future__ import annotations

from msgspec.structs import replace

from wirt.errors import CorruptImage, OutOfBounds, UnsupportedImage
from wirt.image.base import ImageInfo, Storage
from wirt.image.formats.mapped import SECTOR, stored_size
from wirt.image.formats.raw import RawImage
from wirt.image.formats.vpc.structures import Footer


class FixedVpcImage(RawImage):
    format_name = "vpc"

    def __init__(self, storage: Storage, footer: Footer) -> None:
        super().__init__(storage)
        self.footer = footer
        inside = max(0, storage.size() - SECTOR)
        self.virtual_size = footer.virtual_size
        if self.virtual_size > inside:
            raise CorruptImage(f"the footer says {footer.size} bytes, the file has {inside}")

    def info(self) -> ImageInfo:
        return ImageInfo(
            "vpc", self.virtual_size, stored_size(self.storage), specific={"subformat": "fixed"}
        )

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
