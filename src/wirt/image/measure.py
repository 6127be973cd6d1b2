"""How large a file a new image would need, before it is made."""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from wirt.errors import UnsupportedImage
from wirt.image.base import ExtentKind, HasBitmaps, Image
from wirt.image.extents import chain_extents
from wirt.image.formats.qcow2.create import CreateOptions, new_header, refcount_layout
from wirt.image.formats.qcow2.header import Header

_SECTOR = 512
_DIRECTORY_ENTRY = 24  # bytes before the name


class Measure(msgspec.Struct, frozen=True):
    """Sizes in bytes."""

    required: int
    """For the data that there is."""
    fully_allocated: int
    """When the guest has written its whole disk."""
    bitmaps: int | None = None
    """For copies of the source's bitmaps; None where they cannot be copied."""


def measure(
    format: str,  # noqa: A002 - the word of qemu-img and of the field
    *,
    size: int = 0,
    source: Image | None = None,
    bitmaps_of: Image | None = None,
    options: Mapping[str, str] | None = None,
) -> Measure:
    """Return what an image of ``size`` guest bytes, or with the data of ``source``, needs.

    ``bitmaps_of`` is the image whose bitmaps are to be copied, where that is not ``source``.
    Raises UnsupportedImage for formats other than raw, qcow2 and luks, UsageError for options.
    """
    if source is not None:
        size = source.virtual_size
    if format == "raw":
        size = -(-size // _SECTOR) * _SECTOR
        return Measure(size, size)
    if format == "luks":
        return _luks(size, options or {})
    if format != "qcow2":
        raise UnsupportedImage(f"the size of {format} images cannot be told in advance")
    return _qcow2(size, source, bitmaps_of or source, options or {})


def _luks(size: int, given: Mapping[str, str]) -> Measure:
    from wirt.image.luks import LuksOptions, payload_sector

    start = payload_sector(LuksOptions.parse(given, prefix="").key_bytes) * _SECTOR
    whole = start + -(-size // _SECTOR) * _SECTOR
    return Measure(whole, whole)


def _qcow2(
    size: int, source: Image | None, marked: Image | None, given: Mapping[str, str]
) -> Measure:
    options = CreateOptions.parse(given)
    header = new_header(size, options)
    cluster = header.cluster_size
    size = -(-size // cluster) * cluster
    data = 0
    if source is not None:
        data = size if options.backing_file else _data(source, cluster)
    if options.preallocation in {"falloc", "full"}:
        data = size
    whole = size + _metadata(size, header)
    if options.encrypted:
        from wirt.image.luks import LuksOptions, payload_sector

        region = payload_sector(LuksOptions.parse(given).key_bytes) * _SECTOR
        whole += -(-region // cluster) * cluster
    bitmaps = None
    if isinstance(marked, HasBitmaps) and marked.can_have_bitmaps and options.version >= 3:
        bitmaps = _bitmaps(marked, cluster)
    return Measure(whole - size + data, whole, bitmaps)


def _data(source: Image, cluster: int) -> int:
    """Return the bytes of the clusters that hold data."""
    total = covered = 0
    for extent in chain_extents(source):
        if extent.kind is not ExtentKind.DATA:
            continue
        start = max(covered, extent.offset // cluster * cluster)
        end = -(-extent.end // cluster) * cluster
        total += max(0, end - start)
        covered = max(covered, end)
    return total


def _metadata(size: int, header: Header) -> int:
    """Return the bytes of header, L1, all L2 tables and all refcounts of a full image."""
    cluster = header.cluster_size
    entry = 16 if header.extended_l2 else 8
    tables = -(-(size // cluster) * entry // cluster)
    level1 = -(-tables * 8 // cluster)
    clusters = 1 + tables + level1
    return (clusters + sum(refcount_layout(clusters + size // cluster, header))) * cluster


def _bitmaps(source: HasBitmaps, cluster: int) -> int:
    """Return what copies of the sound bitmaps need, all of their bits stored."""
    total = directory = 0
    for bitmap in source.bitmaps():
        if bitmap.in_use:
            continue
        clusters = -(-source.virtual_size // (bitmap.granularity * 8 * cluster))
        table = -(-clusters * 8 // cluster)
        total += (clusters + table) * cluster
        directory += -(-(_DIRECTORY_ENTRY + len(os.fsencode(bitmap.name))) // 8) * 8
    return total + -(-directory // cluster) * cluster
