"""Encryption inside qcow2: LUKS1 (its header in clusters of its own), and the legacy AES.

LUKS enciphers by the place in the file, legacy AES (read only) by the place on the disk.
Compressed clusters are never enciphered.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from wirt.errors import CorruptImage, ImageAccessDenied, UnsupportedImage, UsageError
from wirt.image.base import OpenOptions, Storage
from wirt.image.formats.qcow2.extensions import CRYPTO
from wirt.image.formats.qcow2.guard import CRYPTO_HEADER
from wirt.image.formats.qcow2.header import CRYPT_AES, CRYPT_LUKS, Header
from wirt.image.formats.qcow2.reader import Cipher
from wirt.image.formats.qcow2.volume import Volume
from wirt.image.luks import KeyArea, LuksHeader
from wirt.image.sector_cipher import SECTOR, SectorCipher, make_cipher

_EXTENSION = struct.Struct(">QQ")
_MOST_HEADER = 16 << 20


def locked(_guest: int, _host: int, _data: bytes) -> bytes:
    """Stands for the cipher of an image that was opened without its passphrase."""
    raise ImageAccessDenied("the image is encrypted", hint="give its passphrase")


def ciphers(volume: Volume, secret: bytes) -> tuple[Cipher, Cipher]:
    """Return (encipher, decipher) of an encrypted image. Raises ImageAccessDenied."""
    if volume.header.crypt_method == CRYPT_AES:
        legacy = make_cipher("aes", "cbc-plain64", secret[:16].ljust(16, b"\0"))
        return locked, lambda guest, _, data: legacy.decrypt(guest // SECTOR, data)
    cipher = _unlock(volume, secret)
    return (
        lambda _, host, data: cipher.encrypt(host // SECTOR, data),
        lambda _, host, data: cipher.decrypt(host // SECTOR, data),
    )


def _unlock(volume: Volume, secret: bytes) -> SectorCipher:
    from wirt.image.luks import unlock

    return unlock(KeyClusters(volume).read, secret)[1]


def read_luks_header(volume: Volume) -> LuksHeader:
    """Return the key header, which is readable without a passphrase."""
    from wirt.image.luks import HEADER_SIZE

    return LuksHeader.parse(KeyClusters(volume).read(0, HEADER_SIZE))


class KeyClusters(KeyArea):
    """The clusters that the key header and its slots lie in."""

    def __init__(self, volume: Volume) -> None:
        if volume.header.crypt_method != CRYPT_LUKS:
            raise UnsupportedImage("only images encrypted with LUKS have such passphrases")
        self._volume = volume
        self._start, self._length = header_place(volume.header)

    def read(self, offset: int, length: int) -> bytes:
        if offset + length > self._length:
            raise CorruptImage("a LUKS key slot lies outside the LUKS header")
        return self._volume.storage.pread(self._start + offset, length)

    def write(self, offset: int, data: bytes) -> None:
        self._volume.write_metadata(CRYPTO_HEADER, self._start + offset, data)
        self._volume.barrier()


def header_place(header: Header) -> tuple[int, int]:
    """Return (offset, length) of the LUKS header in the file."""
    raw = header.extension(CRYPTO)
    if raw is None or len(raw) != _EXTENSION.size:
        raise CorruptImage("an encrypted image without a LUKS header")
    offset, length = _EXTENSION.unpack(raw)
    if offset % header.cluster_size or length > _MOST_HEADER or offset >> 56:
        raise CorruptImage("the LUKS header is out of bounds", offset=offset)
    return offset, length


def encrypt_new(storage: Storage, options: Mapping[str, str]) -> bytes:
    """Give a new, empty image a LUKS header; returns the passphrase (``encrypt.secret``)."""
    from wirt.image.luks import LuksOptions, format_luks

    secret = options.get("encrypt.secret")
    if secret is None:
        raise UsageError("an encrypted image needs a passphrase", hint="set encrypt.key-secret")
    passphrase = secret.encode("utf-8", "surrogateescape")
    volume = Volume(storage, Header.parse(storage), OpenOptions(writable=True))
    volume.register_metadata()
    region, _ = format_luks(passphrase, LuksOptions.parse(options))
    size, bits = volume.header.cluster_size, volume.header.cluster_bits
    place = volume.refcounts.allocate_exact(-(-len(region) // size)) << bits
    volume.write_metadata("", place, region + bytes(-len(region) % size))
    volume.commit()
    volume.header.set_extension(CRYPTO, _EXTENSION.pack(place, len(region)))
    volume.header.crypt_method = CRYPT_LUKS
    volume.header_store.write_all()
    return passphrase
