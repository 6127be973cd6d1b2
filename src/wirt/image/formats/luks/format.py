"""What the registry knows of luks."""

from __future__ import annotations

from collections.abc import Mapping

from wirt.errors import NotThisFormat, UnsupportedImage, UsageError
from wirt.image.base import Format, Image, OpenOptions, Storage
from wirt.image.formats.luks.image import Luks1Image, Luks2Image
from wirt.image.formats.mapped import SECTOR, refuse_unknown
from wirt.image.luks import MAGIC, LuksOptions, format_luks

_OPTIONS = ("cipher-alg", "cipher-mode", "ivgen-alg", "ivgen-hash-alg", "hash-alg", "iter-time")
_SECOND_COPIES = tuple(16384 << shift for shift in range(9))


class LuksFormat(Format):
    name = "luks"
    suffixes = (".luks",)
    images = (Luks1Image, Luks2Image)

    def probe(self, storage: Storage) -> bool:
        return storage.pread(0, 6) == MAGIC

    def open(self, storage: Storage, options: OpenOptions) -> Image:
        head = storage.pread(0, 8)
        if head == MAGIC + b"\0\1":
            return Luks1Image(storage, options)
        if head[:6] == MAGIC and head != MAGIC + b"\0\2":
            raise UnsupportedImage(f"LUKS version {head[6:].hex()} is not known")
        if head[:6] != MAGIC and not _second_copy(storage):
            raise NotThisFormat("there is no LUKS signature")
        return Luks2Image(storage, options)

    def create(self, storage: Storage, size: int, options: Mapping[str, str]) -> None:
        """Make a version 1 disk; its bytes are garbage until they are written.

        Options: ``secret`` or ``encrypt.secret`` (the passphrase), ``cipher-alg``,
        ``cipher-mode``, ``ivgen-alg``, ``ivgen-hash-alg``, ``hash-alg``, ``iter-time``.
        """
        refuse_unknown(options, "secret", "encrypt.secret", *_OPTIONS)
        secret = options.get("secret", options.get("encrypt.secret"))
        if secret is None:
            raise UsageError("a LUKS disk needs a passphrase", hint="encrypt it: --encrypt")
        chosen = LuksOptions.parse(options, prefix="")
        region, _ = format_luks(secret.encode("utf-8", "surrogateescape"), chosen)
        storage.truncate(len(region) + -(-size // SECTOR) * SECTOR)
        storage.pwrite(0, region)


def _second_copy(storage: Storage) -> bool:
    """True if the first copy of a version 2 header was overwritten, and the second was not."""
    return any(storage.pread(at, 8) == b"SKUL\xba\xbe\0\2" for at in _SECOND_COPIES)


FORMAT = LuksFormat()
