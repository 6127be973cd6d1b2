r"""LUKS1: the key header in front of an encrypted disk, as cryptsetup and QEMU write it.

Layout (big-endian)::

    0    magic 'LUKS\xba\xbe'    104  payload offset, sectors   164  iterations of the digest
    6    version 1              108  key bytes                  168  UUID, 40 bytes
    8    cipher name, 32        112  digest of the key, 20      208  8 key slots of 48 bytes
    40   cipher mode, 32        132  salt of the digest, 32
    72   hash, 32

A key slot: active word, PBKDF2 iterations, salt (32), offset of its key material in
sectors, stripes. The key material is the master key, spread over so many stripes that a
disk cannot keep enough of it by accident (the anti-forensic splitter), enciphered with a
key derived from the passphrase.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import msgspec

from wirt.errors import (
    CorruptImage,
    ImageAccessDenied,
    NotThisFormat,
    OutOfBounds,
    UnsupportedImage,
    UsageError,
)
from wirt.image.sector_cipher import SECTOR, SectorCipher, make_cipher

MAGIC = b"LUKS\xba\xbe"
HEADER_SIZE = 592
SLOTS = 8
ACTIVE, INACTIVE = 0x00AC71F3, 0x0000DEAD

_FIXED = struct.Struct(">6sH32s32s32sII20s32sI40s")
_SLOT = struct.Struct(">II32sII")
_STRIPES = 4000
_DIGEST = 20
_ALIGN = 8  # sectors, for key material
_MOST_ITERATIONS = 50_000_000
MOST_KEY_BYTES = 64
MOST_STRIPES = 8192
HASHES = frozenset(("sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160"))


class KeySlot(msgspec.Struct):
    active: bool = False
    iterations: int = 0
    salt: bytes = bytes(32)
    offset: int = 0
    """In sectors from the start of the header."""
    stripes: int = _STRIPES


class LuksHeader(msgspec.Struct):
    cipher: str
    mode: str
    hash: str
    payload_offset: int
    """In sectors."""
    key_bytes: int
    digest: bytes = bytes(_DIGEST)
    digest_salt: bytes = bytes(32)
    digest_iterations: int = 0
    uuid: str = ""
    slots: list[KeySlot] = msgspec.field(default_factory=list)

    @classmethod
    def parse(cls, raw: bytes) -> LuksHeader:
        """Raises NotThisFormat, UnsupportedImage or CorruptImage."""
        if raw[:6] != MAGIC or len(raw) < HEADER_SIZE:
            raise NotThisFormat("not a LUKS header")
        values = _FIXED.unpack_from(raw)
        if values[1] != 1:
            raise UnsupportedImage(f"LUKS version {values[1]} is not supported, only 1")
        header = cls(
            cipher=_text(values[2]),
            mode=_text(values[3]),
            hash=_text(values[4]),
            payload_offset=values[5],
            key_bytes=values[6],
            digest=values[7],
            digest_salt=values[8],
            digest_iterations=values[9],
            uuid=_text(values[10]),
        )
        for index in range(SLOTS):
            active, iterations, salt, offset, stripes = _SLOT.unpack_from(
                raw, _FIXED.size + index * _SLOT.size
            )
            header.slots.append(KeySlot(active == ACTIVE, iterations, salt, offset, stripes))
        header.check()
        return header

    def check(self) -> None:
        if not 0 < self.key_bytes <= MOST_KEY_BYTES:
            raise CorruptImage("impossible key size in a LUKS header")
        if self.hash not in HASHES:
            raise UnsupportedImage(f"the hash {self.hash!r} is not supported")
        for slot in self.slots:
            if slot.active and not 0 < slot.stripes <= MOST_STRIPES:
                raise CorruptImage("impossible number of stripes in a LUKS key slot")

    def pack(self) -> bytes:
        fixed = _FIXED.pack(
            MAGIC,
            1,
            self.cipher.encode(),
            self.mode.encode(),
            self.hash.encode(),
            self.payload_offset,
            self.key_bytes,
            self.digest,
            self.digest_salt,
            self.digest_iterations,
            self.uuid.encode(),
        )
        slots = [
            _SLOT.pack(
                ACTIVE if slot.active else INACTIVE,
                slot.iterations,
                slot.salt,
                slot.offset,
                slot.stripes,
            )
            for slot in self.slots
        ]
        return b"".join([fixed, *slots])

    def describe(self) -> dict[str, object]:
        """What ``info`` tells of it, with QEMU's keys."""
        mode, _, generator = self.mode.partition("-")
        generator, _, generator_hash = generator.partition(":")
        bits = self.key_bytes * 8 // (2 if mode == "xts" else 1)
        members: dict[str, object] = {
            "cipher-alg": f"{self.cipher}-{bits}",
            "cipher-mode": mode,
            "ivgen-alg": generator,
            "hash-alg": self.hash,
            "payload-offset": self.payload_offset * SECTOR,
            "master-key-iters": self.digest_iterations,
            "uuid": self.uuid,
            "slots": [_describe_slot(slot) for slot in self.slots],
        }
        return members | ({"ivgen-hash-alg": generator_hash} if generator_hash else {})


def _describe_slot(slot: KeySlot) -> dict[str, object]:
    members: dict[str, object] = {"active": slot.active, "key-offset": slot.offset * SECTOR}
    if slot.active:
        members |= {"iters": slot.iterations, "stripes": slot.stripes}
    return members


def _text(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode("ascii", "replace")


def unlock(read: Callable[[int, int], bytes], secret: bytes) -> tuple[LuksHeader, SectorCipher]:
    """Open the first key slot that ``secret`` fits.

    ``read(offset, length)`` reads relative to the LUKS header. Raises ImageAccessDenied if
    no slot fits.
    """
    header = LuksHeader.parse(read(0, HEADER_SIZE))
    _, key = _fitting(header, read, secret)
    return header, make_cipher(header.cipher, header.mode, key)


def _fitting(
    header: LuksHeader, read: Callable[[int, int], bytes], secret: bytes
) -> tuple[int, bytes]:
    """Return the number of the first slot that ``secret`` fits, and the master key."""
    for index, slot in enumerate(header.slots):
        if slot.active:
            key = _open_slot(header, slot, read, secret)
            if _digest_of(header, key) == header.digest:
                return index, key
    raise ImageAccessDenied("Invalid password, cannot unlock any keyslot")


def _open_slot(
    header: LuksHeader, slot: KeySlot, read: Callable[[int, int], bytes], secret: bytes
) -> bytes:
    length = header.key_bytes * slot.stripes
    padded = length + -length % SECTOR
    material = read(slot.offset * SECTOR, padded)
    if len(material) < padded:
        raise CorruptImage("a LUKS key slot lies beyond the end of the file")
    cipher = _slot_cipher(header, slot, secret)
    return merge_stripes(cipher.decrypt(0, material)[:length], slot.stripes, header.hash)


def _slot_cipher(header: LuksHeader, slot: KeySlot, secret: bytes) -> SectorCipher:
    key = derive(header.hash, secret, slot.salt, slot.iterations, header.key_bytes)
    return make_cipher(header.cipher, header.mode, key)


def derive(digest: str, secret: bytes, salt: bytes, iterations: int, length: int) -> bytes:
    """Return PBKDF2's key, within bounds. Raises OutOfBounds, UnsupportedImage."""
    if not 0 < iterations <= _MOST_ITERATIONS:
        raise OutOfBounds(f"a LUKS header asks for {iterations} iterations of its key derivation")
    try:
        return hashlib.pbkdf2_hmac(digest, secret, salt, iterations, length)
    except ValueError as error:
        raise UnsupportedImage(f"the hash {digest} is not available") from error


def _digest_of(header: LuksHeader, key: bytes) -> bytes:
    return derive(header.hash, key, header.digest_salt, header.digest_iterations, _DIGEST)


# The anti-forensic splitter


def _xor(first: bytes, second: bytes) -> bytes:
    return (int.from_bytes(first) ^ int.from_bytes(second)).to_bytes(len(first))


def _diffuse(block: bytes, digest: str) -> bytes:
    """Hash the block piece by piece, each with its number before it."""
    size = hashlib.new(digest).digest_size
    pieces = []
    for number, start in enumerate(range(0, len(block), size)):
        piece = block[start : start + size]
        pieces.append(hashlib.new(digest, struct.pack(">I", number) + piece).digest()[: len(piece)])
    return b"".join(pieces)


def merge_stripes(material: bytes, stripes: int, digest: str) -> bytes:
    """Return the key that was spread over ``stripes`` pieces."""
    size = len(material) // stripes
    block = bytes(size)
    for index in range(stripes - 1):
        block = _diffuse(_xor(block, material[index * size : (index + 1) * size]), digest)
    return _xor(block, material[(stripes - 1) * size :])


def _split(key: bytes, stripes: int, digest: str) -> bytes:
    size = len(key)
    random = os.urandom(size * (stripes - 1))
    block = bytes(size)
    for index in range(stripes - 1):
        block = _diffuse(_xor(block, random[index * size : (index + 1) * size]), digest)
    return random + _xor(block, key)


# Making one


class LuksOptions(msgspec.Struct, frozen=True):
    """How to make a header; QEMU's defaults."""

    key_bytes: int = 64
    mode: str = "xts-plain64"
    hash: str = "sha256"
    iter_milliseconds: int = 2000

    @classmethod
    def parse(cls, options: Mapping[str, str], prefix: str = "encrypt.") -> LuksOptions:
        """Read QEMU's options: ``cipher-alg``, ``cipher-mode``, ``iter-time`` and so on."""
        given = {k.removeprefix(prefix): v for k, v in options.items() if k.startswith(prefix)}
        name, _, bits = given.get("cipher-alg", "aes-256").partition("-")
        chain, iv = given.get("cipher-mode", "xts"), given.get("ivgen-alg", "plain64")
        if name != "aes" or bits not in {"128", "192", "256"} or chain not in {"xts", "cbc"}:
            raise UsageError("only aes-128, aes-192 and aes-256 with xts or cbc are supported")
        if iv == "essiv":
            iv = "essiv:" + given.get("ivgen-hash-alg", "sha256")
        iter_time = given.get("iter-time", "2000")
        if not iter_time.isdecimal() or not 0 < int(iter_time) < 1 << 31:
            raise UsageError("iter-time is a number of milliseconds")
        return cls(
            key_bytes=int(bits) // 8 * (2 if chain == "xts" else 1),
            mode=f"{chain}-{iv}",
            hash=given.get("hash-alg", "sha256"),
            iter_milliseconds=int(iter_time),
        )


def payload_sector(key_bytes: int) -> int:
    """Return where the payload of a new container begins, in sectors."""
    return _ALIGN + SLOTS * _slot_sectors(key_bytes)


def _slot_sectors(key_bytes: int) -> int:
    sectors = -(-key_bytes * _STRIPES // SECTOR)
    return sectors + -sectors % _ALIGN


def format_luks(secret: bytes, options: LuksOptions) -> tuple[bytes, SectorCipher]:
    """Return the header with its key material (what precedes the payload) and the cipher."""
    key = os.urandom(options.key_bytes)
    cipher = make_cipher("aes", options.mode, key)
    slot_sectors = _slot_sectors(options.key_bytes)
    header = LuksHeader(
        cipher="aes",
        mode=options.mode,
        hash=options.hash,
        payload_offset=payload_sector(options.key_bytes),
        key_bytes=options.key_bytes,
        digest_salt=os.urandom(32),
        uuid=str(uuid.uuid4()),
        slots=[KeySlot(offset=_ALIGN + index * slot_sectors) for index in range(SLOTS)],
    )
    header.check()
    per_second = _iterations_per_second(options.hash)
    header.digest_iterations = max(1000, per_second * options.iter_milliseconds // 8000)
    header.digest = _digest_of(header, key)
    region = bytearray(header.payload_offset * SECTOR)
    slot = header.slots[0]
    slot.iterations = max(1000, per_second * options.iter_milliseconds // 1000)
    _fill_slot(region, header, slot, key, secret)
    region[:HEADER_SIZE] = header.pack()
    return bytes(region), cipher


def _fill_slot(
    region: bytearray, header: LuksHeader, slot: KeySlot, key: bytes, secret: bytes
) -> None:
    packed = _filled(header, slot, key, secret)
    region[slot.offset * SECTOR : slot.offset * SECTOR + len(packed)] = packed


def _filled(header: LuksHeader, slot: KeySlot, key: bytes, secret: bytes) -> bytes:
    """Make the slot one that ``secret`` opens; return its key material."""
    slot.active, slot.salt = True, os.urandom(32)
    material = _split(key, slot.stripes, header.hash)
    material += bytes(-len(material) % SECTOR)
    return _slot_cipher(header, slot, secret).encrypt(0, material)


def _iterations_per_second(digest: str) -> int:
    count = 20_000
    start = time.thread_time_ns()
    derive(digest, b"secret", bytes(32), count, 32)
    spent = max(1, time.thread_time_ns() - start)
    return min(_MOST_ITERATIONS // 100, count * 10**9 // spent)


# Changing passphrases


class KeyArea(ABC):
    """The header with its key material, wherever it lies. Offsets count from the header."""

    @abstractmethod
    def read(self, offset: int, length: int) -> bytes: ...

    @abstractmethod
    def write(self, offset: int, data: bytes) -> None:
        """Write and return when it is durable."""


def add_key(area: KeyArea, secret: bytes, new: bytes, *, iter_milliseconds: int = 2000) -> int:
    """Let ``new`` open the disk too; return the number of its slot.

    The slot counts from the moment its last 48 bytes are written; the others are not touched.
    Raises ImageAccessDenied if ``secret`` is wrong, UsageError if all slots are taken.
    """
    header = LuksHeader.parse(area.read(0, HEADER_SIZE))
    _, key = _fitting(header, area.read, secret)
    free = [index for index, slot in enumerate(header.slots) if not slot.active]
    if not free:
        raise UsageError("all key slots are taken", hint="remove one: wirt img key rm")
    slot = header.slots[free[0]]
    if slot.offset < _ALIGN or slot.stripes != _STRIPES:
        raise CorruptImage("a free LUKS key slot has no place for its key")
    slot.iterations = max(1000, _iterations_per_second(header.hash) * iter_milliseconds // 1000)
    material = _filled(header, slot, key, new)
    area.read(slot.offset * SECTOR, len(material))  # refuses a place outside the header
    area.write(slot.offset * SECTOR, material)
    _write_slot(area, header, free[0])
    return free[0]


def remove_key(area: KeyArea, secret: bytes) -> int:
    """Let ``secret`` open the disk no more; return the number of its slot.

    Its key material is overwritten first. Raises UsageError for the last passphrase.
    """
    header = LuksHeader.parse(area.read(0, HEADER_SIZE))
    index, _ = _fitting(header, area.read, secret)
    if sum(slot.active for slot in header.slots) == 1:
        raise UsageError(
            "without its last passphrase nobody can read the disk", hint="first: wirt img key add"
        )
    slot = header.slots[index]
    length = header.key_bytes * slot.stripes
    area.write(slot.offset * SECTOR, os.urandom(length + -length % SECTOR))
    slot.active, slot.iterations, slot.salt = False, 0, bytes(32)
    _write_slot(area, header, index)
    return index


def _write_slot(area: KeyArea, header: LuksHeader, index: int) -> None:
    start = _FIXED.size + index * _SLOT.size
    area.write(start, header.pack()[start : start + _SLOT.size])
