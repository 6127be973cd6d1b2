"""Header extensions: (type, length, data) records padded to 8 bytes, ended by type 0.

Unknown extensions are kept in place and written back: another program may need them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import msgspec

from wirt.errors import CorruptImage

BACKING_FORMAT = 0xE2792ACA
FEATURE_NAMES = 0x6803F857
BITMAPS = 0x23852875
CRYPTO = 0x0537BE77
DATA_FILE_NAME = 0x44415441

_RECORD = struct.Struct(">II")
_FEATURES = (
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
)

# What changes comes first, so that it stays inside the first sector (written atomically).
_ORDER = (BITMAPS, CRYPTO, BACKING_FORMAT, DATA_FILE_NAME)


class Extension(msgspec.Struct, frozen=True):
    kind: int
    data: bytes


def parse_extensions(cluster: bytes, start: int, end: int) -> list[Extension]:
    """Return the extensions found in ``cluster[start:end]``. Raises CorruptImage."""
    found = []
    position = start
    while position + _RECORD.size <= min(end, len(cluster)):
        kind, length = _RECORD.unpack_from(cluster, position)
        if kind == 0:
            break
        position += _RECORD.size
        if length > end - position or position + length > len(cluster):
            raise CorruptImage("a header extension is too large", offset=position)
        found.append(Extension(kind, cluster[position : position + length]))
        position += (length + 7) & ~7
    return found


def pack_extensions(extensions: Iterable[Extension]) -> bytes:
    """Pack with what changes often first and the feature names last, and the end mark."""
    ordered = sorted(extensions, key=_rank)
    parts = []
    for item in ordered:
        padding = -len(item.data) % 8
        parts += [_RECORD.pack(item.kind, len(item.data)), item.data, bytes(padding)]
    return b"".join([*parts, _RECORD.pack(0, 0)])


def _rank(item: Extension) -> int:
    if item.kind == FEATURE_NAMES:
        return len(_ORDER) + 1
    return _ORDER.index(item.kind) if item.kind in _ORDER else len(_ORDER)


def pack_feature_names() -> bytes:
    """The table that lets older programs name the features they do not know."""
    return b"".join(
        bytes((kind, bit)) + name.encode().ljust(46, b"\0") for kind, bit, name in _FEATURES
    )


def feature_names(table: bytes, bits: int) -> list[str]:
    """Return the names of incompatible features by the image's own table."""
    names = []
    for position in range(0, len(table) - 1, 48):
        kind, bit = table[position], table[position + 1]
        if kind == 0 and bit < 64 and bits >> bit & 1:
            raw = table[position + 2 : position + 48].split(b"\0")[0]
            names.append(raw.decode("utf-8", "replace"))
            bits &= ~(1 << bit)
    return [*names, f"Unknown incompatible feature: {bits:x}"] if bits else names
