"""Opening a key slot of LUKS 2 with a passphrase."""

from __future__ import annotations

from wirt.errors import (
    CorruptImage,
    ImageAccessDenied,
    MissingDependency,
    OutOfBounds,
    UnsupportedImage,
)
from wirt.image.base import Budget, Storage
from wirt.image.formats.luks.metadata import Digest, Kdf, Keyslot, Metadata
from wirt.image.formats.mapped import read_exactly
from wirt.image.luks import HASHES, MOST_KEY_BYTES, MOST_STRIPES, derive, merge_stripes
from wirt.image.sector_cipher import SECTOR, make_cipher

_MOST_PASSES = 64
_MOST_CPUS = 16
_MOST_SLOTS = 32


def decimal(text: str, what: str) -> int:
    """Return one of the numbers that the JSON holds as text. Raises CorruptImage."""
    if not text.isascii() or not text.isdecimal() or len(text) > 19:
        raise CorruptImage(f"{what} of the LUKS header is no number")
    return int(text)


def segment_key(
    storage: Storage, metadata: Metadata, segment: str, secret: bytes, budget: Budget
) -> bytes:
    """Return the key of a segment. Raises ImageAccessDenied if no slot opens."""
    digest = next((one for one in metadata.digests.values() if segment in one.segments), None)
    if digest is None:
        raise CorruptImage(f"no digest belongs to segment {segment[:20]} of the LUKS header")
    for name in digest.keyslots[:_MOST_SLOTS]:
        slot = metadata.keyslots.get(name)
        if slot is not None and slot.type == "luks2" and slot.priority:
            key = _open_slot(storage, slot, secret, budget)
            if _fits(digest, key):
                return key
    raise ImageAccessDenied("the passphrase does not open the image")


def _open_slot(storage: Storage, slot: Keyslot, secret: bytes, budget: Budget) -> bytes:
    for size in (slot.key_size, slot.area.key_size):
        if not 0 < size <= MOST_KEY_BYTES:
            raise CorruptImage(f"a LUKS key cannot have {size} bytes")
    if not 0 < slot.af.stripes <= MOST_STRIPES:
        raise CorruptImage(f"a LUKS key cannot have {slot.af.stripes} stripes")
    if slot.af.hash not in HASHES:
        raise UnsupportedImage(f"the hash {slot.af.hash[:20]!r} is not supported")
    length = slot.key_size * slot.af.stripes
    at = decimal(slot.area.offset, "a key slot's offset")
    material = read_exactly(storage, at, -(-length // SECTOR) * SECTOR, "a LUKS key slot")
    name, _, mode = slot.area.encryption.partition("-")
    key = _stretched(slot.kdf, secret, slot.area.key_size, budget)
    plain = make_cipher(name, mode, key).decrypt(0, material)
    return merge_stripes(plain[:length], slot.af.stripes, slot.af.hash)


def _fits(digest: Digest, key: bytes) -> bool:
    if digest.type != "pbkdf2" or digest.hash not in HASHES:
        raise UnsupportedImage(f"LUKS digests of type {digest.type[:20]!r} are not supported")
    if not 0 < len(digest.digest) <= 64:
        raise CorruptImage("a LUKS digest of impossible length")
    made = derive(digest.hash, key, digest.salt, digest.iterations, len(digest.digest))
    return made == digest.digest


def _stretched(kdf: Kdf, secret: bytes, length: int, budget: Budget) -> bytes:
    if kdf.type == "pbkdf2":
        if kdf.hash not in HASHES:
            raise UnsupportedImage(f"the hash {kdf.hash[:20]!r} is not supported")
        return derive(kdf.hash, secret, kdf.salt, kdf.iterations, length)
    if kdf.type in {"argon2i", "argon2id"}:
        return _argon2(kdf, secret, length, budget)
    raise UnsupportedImage(f"the key derivation {kdf.type[:20]!r} is not supported")


def _argon2(kdf: Kdf, secret: bytes, length: int, budget: Budget) -> bytes:
    if not 0 < kdf.time <= _MOST_PASSES or not 0 < kdf.cpus <= _MOST_CPUS:
        raise OutOfBounds(f"a LUKS header asks for {kdf.time} passes on {kdf.cpus} processors")
    if kdf.memory < 8 * kdf.cpus or kdf.memory << 10 > budget.key_memory:
        raise OutOfBounds(
            f"a LUKS header asks for {kdf.memory >> 10} MiB to derive its key",
            hint="raise the budget (key_memory) if the image is to be trusted",
        )
    try:
        from argon2.exceptions import HashingError
        from argon2.low_level import Type, hash_secret_raw
    except ImportError as error:
        raise MissingDependency(
            "this LUKS 2 image needs the Python module argon2-cffi",
            hint="pip install 'wirt[crypto]'",
        ) from error
    kind = Type.I if kdf.type == "argon2i" else Type.ID
    try:
        return hash_secret_raw(secret, kdf.salt, kdf.time, kdf.memory, kdf.cpus, length, kind)
    except HashingError as error:
        raise CorruptImage(f"the key derivation is impossible: {error}") from error
