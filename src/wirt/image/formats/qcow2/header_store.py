"""Writes the header so that a power cut leaves the old one or the new one.

One sector is written whole or not at all. A header that needs more is switched in steps,
each of which changes either the first sector or bytes that the first sector on disk does
not lead to: a long backing name goes where the old one is not, and the feature name table,
which is mere decoration, is left out in between.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from wirt.errors import UnsupportedImage
from wirt.image.base import Storage
from wirt.image.formats.qcow2.extensions import FEATURE_NAMES, Extension, pack_extensions
from wirt.image.formats.qcow2.header import MAX_NAME, SECTOR, Header

_NAME_ROOM = 1024


class HeaderStore:
    def __init__(
        self,
        storage: Storage,
        header: Header,
        write: Callable[[int, bytes], None],
        barrier: Callable[[], None],
    ) -> None:
        self._storage = storage
        self._header = header
        self._write = write
        self._barrier = barrier

    def write_first_sector(self) -> None:
        """Write the fixed fields; extensions and backing name stay where they are."""
        fields = self._header.pack_fields()
        self._write(0, fields[:SECTOR])

    def write_all(self) -> None:
        """Write fields, extensions and backing name; returns when they are durable."""
        header = self._header
        old = self._storage.pread(0, header.cluster_size).ljust(header.cluster_size, b"\0")
        place = self._name_place(old)
        new = pack_header(header, place)
        if new[SECTOR:] != old[SECTOR:]:
            if place:
                self._write(place, _name_of(header))
                self._barrier()
            self._bridge(place)
            self._write(SECTOR, new[SECTOR:])
            self._barrier()
        self._write(0, new[:SECTOR])
        self._barrier()

    def _name_place(self, old: bytes) -> int:
        """Return where a long backing name may go without touching the old one, else 0."""
        header = self._header
        name = _name_of(header)
        compact = header.header_length + len(pack_extensions(_plain(header))) + len(name)
        if not name or compact <= SECTOR or header.cluster_size < 4 * _NAME_ROOM:
            return 0
        before = int.from_bytes(old[8:16])
        last = header.cluster_size - _NAME_ROOM
        return last if before + _NAME_ROOM <= last else last - _NAME_ROOM

    def _bridge(self, place: int) -> None:
        """Make the first sector stand alone, if that is possible."""
        between = replace(self._header, extensions=_plain(self._header))
        packed = pack_header(between, place)
        if not place and any(packed[SECTOR:]):
            return
        self._write(0, packed[:SECTOR])
        self._barrier()


def _plain(header: Header) -> list[Extension]:
    return [item for item in header.extensions if item.kind != FEATURE_NAMES]


def _name_of(header: Header) -> bytes:
    return (header.backing_name or "").encode("utf-8", "surrogateescape")


def pack_header(header: Header, name_place: int = 0) -> bytes:
    """Return the first cluster; sets ``backing_offset``. Raises UnsupportedImage if too long.

    The backing name follows the extensions unless it has a ``name_place``.
    """
    name = _name_of(header)
    if len(name) > MAX_NAME:
        raise UnsupportedImage("the backing file name is longer than 1023 bytes")
    end = name_place or header.cluster_size - len(name)
    extensions = pack_extensions(header.extensions)
    if header.header_length + len(extensions) > end:
        # As QEMU does for small clusters: the names of features are expendable.
        header.extensions = _plain(header)
        extensions = pack_extensions(header.extensions)
    if header.header_length + len(extensions) > end:
        raise UnsupportedImage("the backing file name does not fit into the header")
    place = name_place or header.header_length + len(extensions)
    header.backing_offset = place if name else 0
    cluster = bytearray(header.cluster_size)
    fields = header.pack_fields()
    cluster[: len(fields)] = fields
    cluster[len(fields) : len(fields) + len(extensions)] = extensions
    if name:
        cluster[place : place + len(name)] = name
    return bytes(cluster)
