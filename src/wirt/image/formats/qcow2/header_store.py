"""Writes the header so that a power cut leaves the old one or the new one.

One sector is written whole or not at all. A header that needs more is switched in steps,
each of which changes only the first sector or only bytes that the first sector does not
lead to: the feature name table, which is mere decoration, is left out in between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from wirt.errors import UnsupportedImage
from wirt.image.base import Storage
from wirt.image.formats.qcow2.extensions import FEATURE_NAMES, pack_extensions
from wirt.image.formats.qcow2.header import MAX_NAME, SECTOR, Header


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
        new = pack_header(header)
        if new[SECTOR:] != old[SECTOR:]:
            self._bridge(old)
            self._write(SECTOR, new[SECTOR:])
            self._barrier()
        self._write(0, new[:SECTOR])
        self._barrier()

    def _bridge(self, old: bytes) -> None:
        """Make the first sector stand alone, if that is possible."""
        header = self._header
        plain = [item for item in header.extensions if item.kind != FEATURE_NAMES]
        between = pack_header(replace(header, extensions=plain))
        if any(between[SECTOR:]):
            return
        self._write(0, between[:SECTOR])
        self._barrier()


def pack_header(header: Header) -> bytes:
    """Return the first cluster; sets ``backing_offset``. Raises UnsupportedImage if too long."""
    name = (header.backing_name or "").encode("utf-8", "surrogateescape")
    if len(name) > MAX_NAME:
        raise UnsupportedImage("the backing file name is longer than 1023 bytes")
    extensions = pack_extensions(header.extensions)
    plain = [item for item in header.extensions if item.kind != FEATURE_NAMES]
    room = header.cluster_size - header.header_length
    if len(extensions) + len(name) > room:
        # As QEMU does for small clusters: the names of features are expendable.
        header.extensions = plain
        extensions = pack_extensions(plain)
    if len(extensions) + len(name) > room:
        raise UnsupportedImage("the backing file name does not fit into the header")
    header.backing_offset = header.header_length + len(extensions) if name else 0
    whole = header.pack_fields() + extensions + name
    return whole.ljust(header.cluster_size, b"\0")
