"""What ``info`` tells about a qcow2 image."""

from __future__ import annotations

import os

from wirt.image.base import ImageInfo, Storage
from wirt.image.formats.qcow2.header import (
    COMPRESSION_NAMES,
    CORRUPT,
    CRYPT_AES,
    CRYPT_NONE,
    DIRTY,
    LAZY_REFCOUNTS,
)
from wirt.image.formats.qcow2.volume import Volume


def describe(volume: Volume, virtual_size: int) -> ImageInfo:
    header = volume.header
    return ImageInfo(
        format="qcow2",
        virtual_size=virtual_size,
        allocated_size=_allocated(volume.storage),
        cluster_size=header.cluster_size,
        backing_name=header.backing_name or "",
        backing_format=header.backing_format or "",
        encrypted=header.crypt_method != CRYPT_NONE,
        dirty=bool(header.incompatible & DIRTY),
        specific=_specific(volume),
    )


def _specific(volume: Volume) -> dict[str, object]:
    """The keys that ``qemu-img info`` has under ``format-specific``."""
    header = volume.header
    specific: dict[str, object] = {
        "compat": "0.10" if header.version == 2 else "1.1",
        "compression-type": COMPRESSION_NAMES[header.compression],
        "refcount-bits": 1 << header.refcount_order,
    }
    if header.version >= 3:
        specific["lazy-refcounts"] = bool(header.compatible & LAZY_REFCOUNTS)
        specific["corrupt"] = bool(header.incompatible & CORRUPT)
        specific["extended-l2"] = header.extended_l2
    if header.has_data_file:
        specific["data-file"] = header.data_file_name or ""
        specific["data-file-raw"] = header.raw_data_file
    if header.crypt_method != CRYPT_NONE:
        specific["encrypt"] = _encryption(volume)
    bitmaps = _bitmaps(volume)
    if bitmaps:
        specific["bitmaps"] = bitmaps
    return specific


def _encryption(volume: Volume) -> dict[str, object]:
    if volume.header.crypt_method == CRYPT_AES:
        return {"format": "aes"}
    from wirt.image.formats.qcow2.crypt import read_luks_header

    return {"format": "luks", **read_luks_header(volume).describe()}


def _bitmaps(volume: Volume) -> list[dict[str, object]]:
    from wirt.image.formats.qcow2.bitmap_directory import read_directory

    return [
        {
            "name": bitmap.name,
            "granularity": 1 << bitmap.granularity_bits,
            "flags": [name for bit, name in ((1, "in-use"), (2, "auto")) if bitmap.flags & bit],
        }
        for bitmap in read_directory(volume.storage, volume.header)
    ]


def _allocated(storage: Storage) -> int:
    descriptor = storage.fileno()
    return storage.size() if descriptor is None else os.fstat(descriptor).st_blocks * 512
