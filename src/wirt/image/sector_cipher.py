"""Ciphers for disks: every sector by itself, its number as initial vector.

A sector has 512 bytes, or in LUKS 2 up to 4096; its number counts 512 bytes all the same.

The names are dm-crypt's: ``xts-plain64``, ``cbc-plain64``, ``cbc-essiv:sha256``, ``cbc-plain``.
AES comes from the optional module ``cryptography``.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from typing import Any

from wirt.errors import MissingDependency, UnsupportedImage

SECTOR = 512
_VECTOR_SECTORS = 8
_IVS = {"plain": 4, "plain64": 8}


class SectorCipher(ABC):
    """Enciphers and deciphers whole sectors."""

    unit: int
    """The bytes of one."""

    @abstractmethod
    def encrypt(self, sector: int, data: bytes) -> bytes:
        """Return ``data`` (whole sectors, the first being number ``sector``) enciphered."""

    @abstractmethod
    def decrypt(self, sector: int, data: bytes) -> bytes: ...


def make_cipher(name: str, mode: str, key: bytes, *, unit: int = SECTOR) -> SectorCipher:
    """Return the cipher that a LUKS header names. Raises UnsupportedImage."""
    chain, _, iv = mode.partition("-")
    if name != "aes":
        raise UnsupportedImage(f"the cipher {name} is not supported", hint="only AES is")
    if len(key) not in ({32, 64} if chain == "xts" else {16, 24, 32}):
        raise UnsupportedImage(f"a key of {len(key)} bytes does not fit {name}-{mode}")
    if chain == "xts" and iv in _IVS:
        return AesXts(key, _IVS[iv], unit)
    if chain == "cbc" and iv in _IVS:
        return AesCbc(key, lambda sector: _plain_iv(sector, _IVS[iv]), unit)
    if chain == "cbc" and iv.startswith("essiv:"):
        return AesCbc(key, _essiv(key, iv.removeprefix("essiv:")), unit)
    raise UnsupportedImage(f"the cipher mode {mode} is not supported")


def _plain_iv(sector: int, width: int) -> bytes:
    return (sector & (1 << 8 * width) - 1).to_bytes(width, "little").ljust(16, b"\0")


def _essiv(key: bytes, digest: str) -> Callable[[int], bytes]:
    if digest not in hashlib.algorithms_guaranteed or digest.startswith("shake"):
        raise UnsupportedImage(f"the hash {digest} is not supported")
    salt = hashlib.new(digest, key).digest()
    if len(salt) not in {16, 24, 32}:
        raise UnsupportedImage(f"the hash {digest} does not give an AES key")
    return lambda sector: _ecb(salt, _plain_iv(sector, 8), encrypt=True)


@cache
def _primitives() -> tuple[Any, Any, Any]:
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    except ImportError as error:
        raise MissingDependency(
            "encrypted images need the Python module cryptography",
            hint="pip install 'wirt[crypto]'",
        ) from error
    return Cipher, algorithms, modes


def _run(key: bytes, mode: object, data: bytes, *, encrypt: bool) -> bytes:
    maker, algorithms, _ = _primitives()
    cipher = maker(algorithms.AES(key), mode)
    worker = cipher.encryptor() if encrypt else cipher.decryptor()
    return bytes(worker.update(data))


def _ecb(key: bytes, data: bytes, *, encrypt: bool) -> bytes:
    return _run(key, _primitives()[2].ECB(), data, encrypt=encrypt)


class AesCbc(SectorCipher):
    def __init__(self, key: bytes, iv: Callable[[int], bytes], unit: int = SECTOR) -> None:
        self._key = key
        self._iv = iv
        self.unit = unit
        _primitives()

    def encrypt(self, sector: int, data: bytes) -> bytes:
        return self._each(sector, data, encrypt=True)

    def decrypt(self, sector: int, data: bytes) -> bytes:
        return self._each(sector, data, encrypt=False)

    def _each(self, sector: int, data: bytes, *, encrypt: bool) -> bytes:
        cbc = _primitives()[2].CBC
        return b"".join(
            _run(
                self._key,
                cbc(self._iv(sector + at // SECTOR)),
                data[at : at + self.unit],
                encrypt=encrypt,
            )
            for at in range(0, len(data), self.unit)
        )


class AesXts(SectorCipher):
    """XTS. Many sectors at once are done as one ECB run between two vectorised XORs."""

    def __init__(self, key: bytes, iv_width: int, unit: int = SECTOR) -> None:
        self.unit = unit
        half = len(key) // 2
        self._key = key
        self._data_key, self._tweak_key = key[:half], key[half:]
        self._width = iv_width
        _primitives()

    def encrypt(self, sector: int, data: bytes) -> bytes:
        return self._all(sector, data, encrypt=True)

    def decrypt(self, sector: int, data: bytes) -> bytes:
        return self._all(sector, data, encrypt=False)

    def _all(self, sector: int, data: bytes, *, encrypt: bool) -> bytes:
        count = len(data) // self.unit
        if count >= _VECTOR_SECTORS:
            return self._vector(sector, data, encrypt=encrypt)
        xts = _primitives()[2].XTS
        return b"".join(
            _run(
                self._key,
                xts(_plain_iv(sector + at // SECTOR, self._width)),
                data[at : at + self.unit],
                encrypt=encrypt,
            )
            for at in range(0, len(data), self.unit)
        )

    def _vector(self, sector: int, data: bytes, *, encrypt: bool) -> bytes:
        import numpy as np

        count = len(data) // self.unit
        starts = range(0, len(data), self.unit)
        numbers = b"".join(_plain_iv(sector + at // SECTOR, self._width) for at in starts)
        first = _ecb(self._tweak_key, numbers, encrypt=True)
        tweaks = np.empty((count, self.unit // 16, 2), dtype="<u8")
        tweaks[:, 0] = np.frombuffer(first, dtype="<u8").reshape(count, 2)
        for block in range(1, self.unit // 16):
            low, high = tweaks[:, block - 1, 0], tweaks[:, block - 1, 1]
            # Multiplication by x in GF(2^128), as IEEE 1619 orders the bits.
            carry = (high >> np.uint64(63)) * np.uint64(0x87)
            tweaks[:, block, 1] = high << np.uint64(1) | low >> np.uint64(63)
            tweaks[:, block, 0] = low << np.uint64(1) ^ carry
        mask = tweaks.reshape(-1)
        mixed = (np.frombuffer(data, dtype="<u8") ^ mask).tobytes()
        done = _ecb(self._data_key, mixed, encrypt=encrypt)
        return (np.frombuffer(done, dtype="<u8") ^ mask).tobytes()
