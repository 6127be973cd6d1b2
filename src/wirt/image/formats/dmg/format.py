"""What the registry knows of dmg."""

from __future__ import annotations

from wirt.errors import ImageError, NotThisFormat
from wirt.image.base import Format, Image, OpenOptions, Storage
from wirt.image.formats.dmg.encryption import decrypted, is_encrypted
from wirt.image.formats.dmg.image import DmgImage, LockedDmgImage, PlainDmgImage
from wirt.image.formats.dmg.trailer import find_trailer
from wirt.image.formats.sparseimage import SparseImage, is_sparse_image


class DmgFormat(Format):
    name = "dmg"
    suffixes = (".dmg",)
    images = (DmgImage, PlainDmgImage, LockedDmgImage, SparseImage)
    has_compression = True

    def probe(self, storage: Storage) -> bool:
        try:
            return find_trailer(storage) is not None or is_encrypted(storage)
        except ImageError:
            return True

    def open(self, storage: Storage, options: OpenOptions) -> Image:
        encrypted = is_encrypted(storage)
        if encrypted and options.secret is None:
            return LockedDmgImage(storage)
        inner = decrypted(storage, options.secret or b"") if encrypted else storage
        trailer = find_trailer(inner)
        if trailer is not None:
            return DmgImage(inner, trailer, options, encrypted=encrypted)
        if not encrypted:
            raise NotThisFormat("there is no UDIF trailer")
        if is_sparse_image(inner):
            return SparseImage(inner, options, encrypted=True)
        return PlainDmgImage(inner)


FORMAT = DmgFormat()
