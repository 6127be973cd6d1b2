"""Open LUKS disks. Without the passphrase they can be looked at, not read."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

import msgspec

from wirt.errors import CorruptImage, ImageAccessDenied, ImageIoError, UnsupportedImage, UsageError
from wirt.image.base import (
    Extent,
    ExtentKind,
    HasKeys,
    ImageInfo,
    OpenOptions,
    Resizable,
    Storage,
    WritableImage,
)
from wirt.image.formats.luks.metadata import Metadata, Segment, read_metadata
from wirt.image.formats.luks.unlocking import decimal, segment_key
from wirt.image.formats.mapped import SECTOR, MappedImage, read_exactly, stored_size
from wirt.image.luks import HEADER_SIZE, KeyArea, LuksHeader, add_key, remove_key, unlock
from wirt.image.sector_cipher import SectorCipher, make_cipher

_STEP = 1 << 20
_MOST_SEGMENTS = 64


def locked() -> ImageAccessDenied:
    return ImageAccessDenied("the image is encrypted", hint="give its passphrase")


class _Head(KeyArea):
    """What precedes the payload."""

    def __init__(self, storage: Storage, read: Callable[[int, int], bytes]) -> None:
        self._storage = storage
        self._read = read

    def read(self, offset: int, length: int) -> bytes:
        return self._read(offset, length)

    def write(self, offset: int, data: bytes) -> None:
        self._storage.pwrite(offset, data)
        self._storage.flush()


class Luks1Image(MappedImage, WritableImage, Resizable, HasKeys):
    """The payload behind the header, sector by sector. A new one reads as garbage."""

    format_name = "luks"
    new_is_zero = False

    def __init__(self, storage: Storage, options: OpenOptions) -> None:
        self.storage = storage
        self.writable = options.writable
        self.header = LuksHeader.parse(storage.pread(0, HEADER_SIZE))
        self._payload = self.header.payload_offset * SECTOR
        inside = storage.size() - self._payload
        if inside < 0 or not self._payload:
            raise CorruptImage("the payload lies beyond the end of the file")
        self.virtual_size = inside // SECTOR * SECTOR
        self._cipher: SectorCipher | None = None
        if options.secret is not None:
            self._cipher = unlock(self._read_header, options.secret)[1]

    def _read_header(self, offset: int, length: int) -> bytes:
        if offset + length > self._payload:
            raise CorruptImage("a LUKS key slot lies outside the LUKS header")
        return self.storage.pread(offset, length)

    def add_key(self, secret: bytes, new: bytes, *, iter_milliseconds: int = 2000) -> int:
        return add_key(self._area(), secret, new, iter_milliseconds=iter_milliseconds)

    def remove_key(self, secret: bytes) -> int:
        return remove_key(self._area(), secret)

    def _area(self) -> KeyArea:
        if not self.writable:
            raise ImageIoError("the image is open for reading only", path=self.storage.name)
        return _Head(self.storage, self._read_header)

    def _unlocked(self) -> SectorCipher:
        if self._cipher is None:
            raise locked()
        return self._cipher

    def _run(self, offset: int, limit: int) -> Extent:
        return Extent(offset, limit, ExtentKind.DATA)

    def _read_packed(self, offset: int, length: int) -> bytes:
        first = offset // SECTOR
        end = -(-(offset + length) // SECTOR)
        place = self._payload + first * SECTOR
        data = read_exactly(self.storage, place, (end - first) * SECTOR, "a sector")
        inside = offset - first * SECTOR
        return self._unlocked().decrypt(first, data)[inside : inside + length]

    def _before_write(self, offset: int, length: int) -> SectorCipher:
        self._check(offset, length)
        if not self.writable:
            raise ImageIoError("the image is open for reading only", path=self.storage.name)
        return self._unlocked()

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        cipher = self._before_write(offset, len(view))
        for at in range(0, len(view), _STEP):
            self._write(cipher, offset + at, view[at : at + _STEP])

    def _write(self, cipher: SectorCipher, offset: int, part: memoryview) -> None:
        start = offset // SECTOR * SECTOR
        stop = offset + len(part)
        end = -(-stop // SECTOR) * SECTOR
        before = self.pread(start, offset - start)
        after = self.pread(stop, end - stop)
        packed = cipher.encrypt(start // SECTOR, b"".join((before, part, after)))
        self.storage.pwrite(self._payload + start, packed)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self._before_write(offset, length)
        zeros = bytes(min(length, _STEP))
        for at in range(0, length, _STEP):
            self.pwrite(offset + at, memoryview(zeros)[: length - at])

    def discard(self, offset: int, length: int) -> None:
        self.write_zeroes(offset, length)

    def flush(self) -> None:
        self.storage.flush()

    def resize(self, size: int, *, preallocation: str = "off") -> None:
        if preallocation not in {"off", "full"}:
            raise UsageError(f"LUKS disks have no preallocation {preallocation!r}")
        old = self.virtual_size
        self._before_write(0, 0)
        size = -(-size // SECTOR) * SECTOR
        self.storage.truncate(self._payload + size)
        self.virtual_size = size
        if size > old:
            self.write_zeroes(old, size - old)
        self.flush()

    def info(self) -> ImageInfo:
        header = self.header
        specific = {
            "version": 1,
            "cipher": f"{header.cipher}-{header.mode}",
            "key-bits": header.key_bytes * 8,
            "hash-alg": header.hash,
            "uuid": header.uuid,
            "payload-offset": self._payload,
            "master-key-iters": header.digest_iterations,
            "slots": [_slot(slot.active, slot.offset, slot.iterations) for slot in header.slots],
        }
        size = stored_size(self.storage)
        return ImageInfo("luks", self.virtual_size, size, encrypted=True, specific=specific)


def _slot(active: bool, offset: int, iterations: int) -> dict[str, object]:
    shown: dict[str, object] = {"active": active, "key-offset": offset * SECTOR}
    return {**shown, "iters": iterations} if active else shown


class _Piece(msgspec.Struct, frozen=True):
    """One segment, where it is on the disk (``start``) and in the file (``place``)."""

    start: int
    length: int
    place: int
    tweak: int
    unit: int
    cipher: SectorCipher | None
    encrypted: bool

    @property
    def end(self) -> int:
        return self.start + self.length


class Luks2Image(MappedImage):
    format_name = "luks"

    def __init__(self, storage: Storage, options: OpenOptions) -> None:
        self.storage = storage
        self._metadata, self._uuid = read_metadata(storage)
        self._pieces: list[_Piece] = []
        self._keys: dict[str, bytes] = {}
        for name in _in_order(self._metadata):
            self._add(name, self._metadata.segments[name], options)
        if not self._pieces:
            raise CorruptImage("the LUKS header has no segments")
        self._starts = [piece.start for piece in self._pieces]
        self.virtual_size = self._pieces[-1].end

    def _add(self, name: str, segment: Segment, options: OpenOptions) -> None:
        if segment.type not in {"crypt", "linear"} or segment.integrity is not None:
            raise UnsupportedImage(f"LUKS segments {segment.type[:20]!r} are not supported")
        unit = segment.sector_size
        if unit not in {512, 1024, 2048, 4096}:
            raise CorruptImage(f"LUKS sectors cannot have {unit} bytes")
        place = decimal(segment.offset, "a segment's offset")
        length = self.storage.size() - place
        if segment.size != "dynamic":
            length = min(length, decimal(segment.size, "a segment's size"))
        length = max(0, length) // unit * unit
        cipher = None
        if segment.type == "crypt" and options.secret is not None:
            cipher = self._cipher(name, segment, options)
        start = self._pieces[-1].end if self._pieces else 0
        tweak = decimal(segment.iv_tweak, "a segment's tweak")
        encrypted = segment.type == "crypt"
        self._pieces.append(_Piece(start, length, place, tweak, unit, cipher, encrypted))

    def _cipher(self, name: str, segment: Segment, options: OpenOptions) -> SectorCipher:
        key = segment_key(self.storage, self._metadata, name, options.secret or b"", options.budget)
        kind, _, mode = segment.encryption.partition("-")
        return make_cipher(kind, mode, key, unit=segment.sector_size)

    def _piece(self, offset: int) -> _Piece:
        return self._pieces[bisect_right(self._starts, offset) - 1]

    def _run(self, offset: int, limit: int) -> Extent:
        piece = self._piece(offset)
        length = min(limit, piece.end - offset)
        if piece.encrypted:
            return Extent(offset, length, ExtentKind.DATA)
        place = piece.place + offset - piece.start
        return Extent(offset, length, ExtentKind.DATA, storage=self.storage, storage_offset=place)

    def _read_packed(self, offset: int, length: int) -> bytes:
        parts = []
        while length:
            piece = self._piece(offset)
            step = min(length, piece.end - offset)
            parts.append(self._decrypted(piece, offset - piece.start, step))
            offset += step
            length -= step
        return b"".join(parts)

    def _decrypted(self, piece: _Piece, inside: int, length: int) -> bytes:
        if piece.cipher is None:
            raise locked()
        first = inside // piece.unit * piece.unit
        end = -(-(inside + length) // piece.unit) * piece.unit
        data = read_exactly(self.storage, piece.place + first, end - first, "a sector")
        plain = piece.cipher.decrypt(piece.tweak + first // SECTOR, data)
        return plain[inside - first : inside - first + length]

    def info(self) -> ImageInfo:
        slots = self._metadata.keyslots.values()
        specific = {
            "version": 2,
            "uuid": self._uuid,
            "cipher": ", ".join(
                segment.encryption or segment.type for segment in self._metadata.segments.values()
            ),
            "kdf": ", ".join(slot.kdf.type for slot in slots),
        }
        size = stored_size(self.storage)
        return ImageInfo("luks", self.virtual_size, size, encrypted=True, specific=specific)


def _in_order(metadata: Metadata) -> list[str]:
    """Return the segments that make up the disk, in order; backups are of a re-encryption."""
    names = [
        name
        for name, segment in metadata.segments.items()
        if not any(flag.startswith("backup-") for flag in segment.flags)
    ]
    if len(names) > _MOST_SEGMENTS:
        raise CorruptImage(f"{len(names)} LUKS segments cannot be")
    ordered = sorted(names, key=lambda name: decimal(name, "a segment's number"))
    if any(metadata.segments[name].size == "dynamic" for name in ordered[:-1]):
        raise CorruptImage("only the last LUKS segment can go on to the end of the file")
    return ordered
