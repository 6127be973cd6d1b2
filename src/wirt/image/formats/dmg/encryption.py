r"""Encrypted Apple images: AES in CBC mode, block by block, under a key that a passphrase wraps.

Apple publishes no specification; the layout is that of vfdecrypt and of later tools of its kind,
checked against images of Mac OS X. Big-endian::

    version 2   a header, its key entries, then the blocks
        0 "encrcdsa"  8 version 2   12 bytes of an IV   16 mode 5   20 AES 0x80000001
        24 key bits  28 HMAC-SHA-1 0x5b  32 its bits  52 bytes of a block  56 bytes of data
        64 where they begin  72 key entries, each: u32 kind (1: passphrase), u64 offset, u64 length
        entry   0 PBKDF2 0x67  8 rounds  12 salt length  16 salt[32]  48 IV length  52 IV[32]
                84 key bits  88 3DES 0x11  92 padding 7  96 mode 6  100 length, 104 wrapped key
        wrapped key: 3DES-CBC of the AES key, the HMAC key and "CKIE\0", padded

    version 1   the blocks, then a header at the end of the file
        16 bytes of a block  20 3DES  40 PBKDF2  48 rounds  52 salt length  56 salt[32]
        96 AES  100 key bits  136 length, 140 wrapped AES key[256]
        436 length, 440 wrapped HMAC key[256]  1256 offset of this header  1264 1 "cdsaencr"
        wrapped key: 3DES-CBC twice, with a fixed IV and reversed in between (RFC 3217)

The IV of a block is the HMAC of its number. PBKDF2 uses HMAC-SHA-1.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable
from typing import Any

import msgspec

from wirt.errors import (
    CorruptImage,
    ImageAccessDenied,
    ImageIoError,
    MissingDependency,
    OutOfBounds,
    UnsupportedImage,
)
from wirt.image.base import Storage
from wirt.image.formats.mapped import read_exactly, stored_size

_MAGIC_2, _MAGIC_1 = b"encrcdsa", b"cdsaencr"
_HEAD = struct.Struct(">8s7I16sIQQI")
_ENTRY = struct.Struct(">IQQ")
_WRAPPED = struct.Struct(">III I32s I32s 5I")
_TRAILER = 1276
_MOST_BLOCK = 1 << 20
_PBKDF2, _DES, _AES = 0x67, 0x11, 0x80000001
_PASSPHRASE = 1
_RFC_3217_IV = bytes.fromhex("4adda22c79e82105")
_MOST_ENTRIES, _MOST_ROUNDS, _MOST_WRAPPED = 64, 10_000_000, 256


class Keys(msgspec.Struct, frozen=True):
    aes: bytes
    hmac: bytes
    block_size: int


def is_encrypted(storage: Storage) -> bool:
    if storage.pread(0, 12) == _MAGIC_2 + b"\0\0\0\2":
        return True
    return storage.pread(max(0, storage.size() - 12), 12) == b"\0\0\0\1" + _MAGIC_1


def decrypted(storage: Storage, secret: bytes) -> DecryptedStorage:
    """Return the plain bytes of an encrypted image. Raises ImageAccessDenied, ImageError."""
    start, length = data_place(storage)
    return DecryptedStorage(storage, read_keys(storage, secret), start, length)


def data_place(storage: Storage) -> tuple[int, int]:
    """Return offset and length of the encrypted data, which needs no passphrase."""
    if storage.pread(0, 8) == _MAGIC_2:
        head = _HEAD.unpack(read_exactly(storage, 0, _HEAD.size, "the encryption header"))
        start, length = head[11], head[10]
    else:
        raw = read_exactly(storage, storage.size() - 20, 8, "the encryption header")
        start, length = 0, int.from_bytes(raw)
    if start + length > storage.size() + _MOST_BLOCK:
        raise CorruptImage("the encrypted data are cut off", offset=start)
    return start, length


def locked() -> ImageAccessDenied:
    return ImageAccessDenied("the image is encrypted", hint="give its passphrase")


def read_keys(storage: Storage, secret: bytes) -> Keys:
    """Raises ImageAccessDenied if ``secret`` is not the passphrase."""
    if storage.pread(0, 8) == _MAGIC_2:
        return _version_2(storage, secret)
    return _version_1(storage, secret)


def _version_2(storage: Storage, secret: bytes) -> Keys:
    head = read_exactly(storage, 0, _HEAD.size, "the encryption header")
    f = _HEAD.unpack(head)
    _, _, iv_size, mode, cipher, bits, mac, mac_bits, _, block, _, _, entries = f
    if (iv_size, mode, cipher, mac, mac_bits) != (16, 5, _AES, 0x5B, 160):
        raise UnsupportedImage("the image is not encrypted with AES-CBC and HMAC-SHA-1")
    if entries > _MOST_ENTRIES:
        raise CorruptImage(f"{entries} keys cannot be")
    where = read_exactly(storage, _HEAD.size, entries * _ENTRY.size, "the key entries")
    _check(bits, block)
    for kind, at, size in _ENTRY.iter_unpack(where):
        if kind == _PASSPHRASE and size >= _WRAPPED.size:
            key = _unwrap_2(read_exactly(storage, at, min(size, 1024), "a key entry"), secret)
            if key is not None and len(key) == bits // 8 + 20:
                return Keys(key[: bits // 8], key[bits // 8 :], block)
    raise ImageAccessDenied("the passphrase does not open the image")


def _check(bits: int, block: int) -> None:
    if bits not in {128, 256}:
        raise UnsupportedImage(f"AES keys of {bits} bits are not supported")
    if block % 512 or not 512 <= block <= _MOST_BLOCK:
        raise CorruptImage(f"encrypted blocks cannot be {block} bytes long")


def _unwrap_2(raw: bytes, secret: bytes) -> bytes | None:
    f = _WRAPPED.unpack_from(raw)
    method, _, rounds, salt_size, salt, iv_size, iv, bits, cipher, padding, mode, size = f
    if (method, bits, cipher, padding, mode, iv_size) != (_PBKDF2, 192, _DES, 7, 6, 8):
        raise UnsupportedImage("the key is not wrapped by PBKDF2 and triple DES")
    if salt_size > 32 or size % 8 or not 0 < size <= _MOST_WRAPPED:
        raise CorruptImage("impossible lengths in a key entry")
    wrapped = raw[_WRAPPED.size : _WRAPPED.size + size]
    if len(wrapped) < size:
        raise CorruptImage("a key entry is cut off")
    key = _unpadded(_des(_derived(secret, salt[:salt_size], rounds), iv[:8], wrapped))
    return key[:-5] if key is not None and key.endswith(b"CKIE\0") else None


def _version_1(storage: Storage, secret: bytes) -> Keys:
    start = storage.size() - _TRAILER
    raw = read_exactly(storage, start, _TRAILER, "the encryption header")
    block, des, padding, mode, des_bits, _, method, _, rounds, salt_size = struct.unpack_from(
        ">10I", raw, 16
    )
    cipher, bits = struct.unpack_from(">II", raw, 96)
    if (des, padding, mode, des_bits, method, cipher) != (_DES, 7, 6, 192, _PBKDF2, _AES):
        raise UnsupportedImage("the image is not encrypted with AES and PBKDF2")
    _check(bits, block)
    if salt_size > 32:
        raise CorruptImage("impossible lengths in the encryption header")
    derived = _derived(secret, raw[56 : 56 + salt_size], rounds)
    aes, mac = _unwrap_1(raw, 136, derived), _unwrap_1(raw, 436, derived)
    if aes is None or mac is None or len(aes) != bits // 8:
        raise ImageAccessDenied("the passphrase does not open the image")
    return Keys(aes, mac, block)


def _unwrap_1(raw: bytes, at: int, derived: bytes) -> bytes | None:
    (size,) = struct.unpack_from(">I", raw, at)
    if size % 8 or not 0 < size <= _MOST_WRAPPED:
        raise CorruptImage("impossible length of a wrapped key")
    once = _unpadded(_des(derived, _RFC_3217_IV, raw[at + 4 : at + 4 + size]))
    if once is None or len(once) < 16 or len(once) % 8:
        return None
    turned = once[::-1]
    twice = _unpadded(_des(derived, turned[:8], turned[8:]))
    return twice[4:] if twice is not None and twice[:4] == bytes(4) else None


def _derived(secret: bytes, salt: bytes, rounds: int) -> bytes:
    if not 0 < rounds <= _MOST_ROUNDS:
        raise OutOfBounds(f"the image asks for {rounds} rounds of its key derivation")
    return hashlib.pbkdf2_hmac("sha1", secret, salt, rounds, 24)


def _unpadded(data: bytes) -> bytes | None:
    count = data[-1]
    if not 0 < count <= 8 or data[-count:] != bytes([count]) * count:
        return None
    return data[:-count]


def _ciphers() -> tuple[Any, Any, Any, Any]:
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        try:
            from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
        except ImportError:  # before version 43
            from cryptography.hazmat.primitives.ciphers.algorithms import TripleDES
    except ImportError as error:
        raise MissingDependency(
            "encrypted images need the Python module cryptography",
            hint="pip install 'wirt[crypto]'",
        ) from error
    return Cipher, algorithms.AES, TripleDES, modes


def _des(key: bytes, iv: bytes, data: bytes) -> bytes:
    cipher, _, triple, modes = _ciphers()
    return bytes(cipher(triple(key), modes.CBC(iv)).decryptor().update(data))


def block_cipher(keys: Keys) -> Callable[[int, bytes], bytes]:
    """Return a function that deciphers whole blocks, the first being of the number given."""
    cipher, aes, _, modes = _ciphers()
    size = keys.block_size

    def decipher(number: int, data: bytes) -> bytes:
        # CBC of many blocks at once: each ciphertext block masks the next, the IV the first.
        plain = cipher(aes(keys.aes), modes.ECB()).decryptor().update(data)
        masks = bytearray(len(data))
        masks[16:] = data[:-16]
        for at in range(0, len(data), size):
            count = number + at // size
            masks[at : at + 16] = hmac.digest(keys.hmac, struct.pack(">I", count), "sha1")[:16]
        mixed = int.from_bytes(plain, "little") ^ int.from_bytes(masks, "little")
        return mixed.to_bytes(len(data), "little")

    return decipher


class DecryptedStorage(Storage):
    """The plain bytes of encrypted ones. Closing it closes those."""

    read_only = True

    def __init__(self, storage: Storage, keys: Keys, start: int, length: int) -> None:
        self.name = storage.name
        self._storage = storage
        self._start = start
        self._length = length
        self._block = keys.block_size
        self._decipher = block_cipher(keys)
        if -(-length // self._block) > 1 << 32:
            raise CorruptImage(f"{length} bytes have more blocks than can be numbered")

    def size(self) -> int:
        return self._length

    def allocated_size(self) -> int:
        return stored_size(self._storage)

    def pread(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self._length - offset))
        if not length:
            return b""
        first = offset // self._block
        end = -(-(offset + length) // self._block) * self._block
        at = first * self._block
        data = self._storage.pread(self._start + at, end - at)
        data += bytes(-len(data) % 16)
        inside = offset - at
        return self._decipher(first, data)[inside : inside + length].ljust(length, b"\0")

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        raise ImageIoError("encrypted Apple images can only be read", path=self.name)

    def truncate(self, size: int) -> None:
        raise ImageIoError("encrypted Apple images can only be read", path=self.name)

    def flush(self) -> None:
        """Nothing is ever written."""

    def close(self) -> None:
        self._storage.close()
