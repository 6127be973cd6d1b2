"""The header of LUKS 2: two copies with checksums, and the JSON inside."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator

import msgspec

from wirt.errors import CorruptImage, UnsupportedImage
from wirt.image.base import Storage
from wirt.image.luks import MAGIC
from wirt.typed_json import decode

_SECOND = b"SKUL\xba\xbe"
_BINARY = 4096
_CHECKSUM = slice(448, 512)
_LENGTHS = tuple(16384 << shift for shift in range(9))


class AntiForensic(msgspec.Struct, frozen=True):
    stripes: int = 0
    hash: str = ""


class Area(msgspec.Struct, frozen=True):
    offset: str = "0"
    encryption: str = ""
    key_size: int = 0


class Kdf(msgspec.Struct, frozen=True):
    type: str = ""
    salt: bytes = b""
    hash: str = ""
    iterations: int = 0
    time: int = 0
    memory: int = 0
    """In KiB."""
    cpus: int = 0


class Keyslot(msgspec.Struct, frozen=True):
    type: str
    key_size: int
    area: Area
    af: AntiForensic = AntiForensic()
    kdf: Kdf = Kdf()
    priority: int = 1


class Segment(msgspec.Struct, frozen=True):
    type: str
    offset: str
    size: str
    encryption: str = ""
    iv_tweak: str = "0"
    sector_size: int = 512
    integrity: object = None
    flags: tuple[str, ...] = ()


class Digest(msgspec.Struct, frozen=True):
    type: str
    keyslots: tuple[str, ...]
    segments: tuple[str, ...]
    salt: bytes
    digest: bytes
    hash: str = ""
    iterations: int = 0


class Requirements(msgspec.Struct, frozen=True):
    mandatory: tuple[str, ...] = ()


class Config(msgspec.Struct, frozen=True):
    requirements: Requirements = Requirements()


class Metadata(msgspec.Struct, frozen=True):
    keyslots: dict[str, Keyslot]
    segments: dict[str, Segment]
    digests: dict[str, Digest]
    config: Config = Config()


def read_metadata(storage: Storage) -> tuple[Metadata, str]:
    """Return the newer of the intact copies, and the UUID. Raises CorruptImage."""
    found = sorted(_copies(storage), key=lambda copy: copy[0])
    if not found:
        raise CorruptImage("both copies of the LUKS header are broken")
    _, raw, uuid = found[-1]
    text = raw[_BINARY:].split(b"\0", 1)[0]
    try:
        metadata = decode(text, Metadata)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CorruptImage(f"the LUKS header's JSON is wrong: {error}") from error
    if metadata.config.requirements.mandatory:
        raise UnsupportedImage(
            f"the image needs {', '.join(metadata.config.requirements.mandatory)[:80]}",
            hint="let cryptsetup finish what it began: cryptsetup repair, cryptsetup reencrypt",
        )
    return metadata, uuid


def _copies(storage: Storage) -> Iterator[tuple[int, bytes, str]]:
    first = _copy(storage, 0, MAGIC)
    if first is not None:
        yield first
    # The second follows the first; if that does not tell its length, all are tried.
    for at in _LENGTHS if first is None else (len(first[1]),):
        second = _copy(storage, at, _SECOND)
        if second is not None:
            yield second
            return


def _copy(storage: Storage, at: int, magic: bytes) -> tuple[int, bytes, str] | None:
    """Return (sequence, header, UUID) of one copy, None if it is not intact."""
    head = storage.pread(at, _BINARY)
    if len(head) < _BINARY or head[:8] != magic + b"\0\2":
        return None
    length, sequence = struct.unpack_from(">QQ", head, 8)
    (own,) = struct.unpack_from(">Q", head, 256)
    if length not in _LENGTHS or own != at:
        return None
    raw = storage.pread(at, length)
    name = head[72:104].split(b"\0")[0].decode("ascii", "replace")
    if len(raw) < length or name not in {"sha256", "sha1", "sha512", "sha384", "sha224"}:
        return None
    covered = raw[: _CHECKSUM.start] + bytes(64) + raw[_CHECKSUM.stop :]
    digest = hashlib.new(name, covered).digest()
    if raw[_CHECKSUM][: len(digest)] != digest:
        return None
    return sequence, raw, head[168:208].split(b"\0")[0].decode("ascii", "replace")
