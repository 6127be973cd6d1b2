"""The trailer of a UDIF image, and the block tables that it leads to."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from wirt.errors import CorruptImage, OutOfBounds, UnsupportedImage
from wirt.image.base import Budget, Storage
from wirt.image.formats.mapped import read_metadata

LENGTH = 512
_SEARCHED = 1024
_MAP = struct.Struct(">IIII")


class Trailer(msgspec.Struct, frozen=True):
    """Places are (offset, length) in the file."""

    data: tuple[int, int]
    resources: tuple[int, int]
    plist: tuple[int, int]
    sectors: int

    @classmethod
    def parse(cls, raw: bytes) -> Trailer:
        (segments,) = struct.unpack_from(">I", raw, 60)
        if segments > 1:
            raise UnsupportedImage(
                f"the image has {segments} segments", hint="join them first: hdiutil convert"
            )
        (sectors,) = struct.unpack_from(">Q", raw, 492)
        data, resources, plist = (struct.unpack_from(">QQ", raw, at) for at in (24, 40, 216))
        return cls(data, resources, plist, sectors)


def find_trailer(storage: Storage) -> Trailer | None:
    """Return the trailer, which padding may follow, or None. Raises UnsupportedImage."""
    start = max(0, storage.size() - _SEARCHED)
    tail = storage.pread(start, _SEARCHED)
    at = tail.rfind(b"koly\0\0\0\4\0\0\2\0")
    if at < 0 or len(tail) - at < LENGTH:
        return None
    return Trailer.parse(tail[at : at + LENGTH])


def block_tables(storage: Storage, trailer: Trailer, budget: Budget) -> Iterator[bytes]:
    """Yield the block tables, of the property list or, without one, of the resource fork."""
    if trailer.plist[1]:
        yield from _of_plist(read_metadata(storage, *trailer.plist, "the property list", budget))
    elif trailer.resources[1]:
        raw = read_metadata(storage, *trailer.resources, "the resource fork", budget)
        yield from _of_resources(raw, budget)
    else:
        raise CorruptImage("the image has no block tables")


def _of_plist(raw: bytes) -> Iterator[bytes]:
    tables = parse_plist(raw).get("resource-fork")
    entries = tables.get("blkx") if isinstance(tables, dict) else None
    if not isinstance(entries, list):
        raise CorruptImage("the property list names no block tables")
    for entry in entries:
        data = entry.get("Data") if isinstance(entry, dict) else None
        if not isinstance(data, bytes):
            raise CorruptImage("an entry of the property list holds no block table")
        yield data


def parse_plist(raw: bytes) -> dict[str, object]:
    """Return the dictionary of an XML property list. Raises CorruptImage."""
    import plistlib
    from xml.parsers.expat import ExpatError

    try:
        value = plistlib.loads(raw, fmt=plistlib.FMT_XML)
    except (ExpatError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CorruptImage(f"the property list is broken: {error}") from error
    if not isinstance(value, dict):
        raise CorruptImage("the property list is no dictionary")
    return value


def _of_resources(raw: bytes, budget: Budget) -> Iterator[bytes]:
    """Walk a classic resource fork: a map of types, of each the places of its resources."""
    try:
        data_at, map_at, _, _ = _MAP.unpack_from(raw)
        (types_at,) = struct.unpack_from(">H", raw, map_at + 24)
        types_at += map_at
        (last,) = struct.unpack_from(">H", raw, types_at)
        for number in range(last + 1 & 0xFFFF):
            kind, count, at = struct.unpack_from(">4sHH", raw, types_at + 2 + 8 * number)
            if kind == b"blkx":
                yield from _resources(raw, types_at + at, count + 1, data_at, budget)
    except struct.error as error:
        raise CorruptImage("the resource fork is cut off") from error


def _resources(raw: bytes, at: int, count: int, data_at: int, budget: Budget) -> Iterator[bytes]:
    total = 0
    for number in range(count):
        (place,) = struct.unpack_from(">I", raw, at + 12 * number + 4)
        place = data_at + (place & 0xFFFFFF)
        (length,) = struct.unpack_from(">I", raw, place)
        if place + 4 + length > len(raw):
            raise CorruptImage("a resource lies outside the resource fork")
        total += length
        if total > budget.metadata_bytes:
            raise OutOfBounds("the block tables are over the budget for metadata")
        yield raw[place + 4 : place + 4 + length]
