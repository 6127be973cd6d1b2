"""What a published disk image is: format, virtual size, and the firmware that can boot it.

Only files that no guest of ours has ever written are looked at: a raw disk can hold the header
of any format. raw itself is believed only when the disk has a partition table.
"""

from __future__ import annotations

import os
import struct
import uuid
from pathlib import Path
from typing import NamedTuple

from wirt.catalog.image import Firmware
from wirt.errors import AmbiguousFormat, CorruptImage, UnsupportedImage
from wirt.image.base import Image
from wirt.image.open import open_image
from wirt.image.probe import probe_file

_SECTOR = 512
_HEAD = 34 * _SECTOR
_EFI_SYSTEM = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b").bytes_le
_EFI_MBR_TYPE = 0xEF
_BOOT_CODE = 440
_MAX_ENTRIES = 1024


class DiskFacts(NamedTuple):
    """Format as ``qemu-img -f`` names it, virtual size in bytes, firmware."""

    format: str
    virtual_size: int
    firmware: Firmware


def inspect_disk(path: Path, *, format: str = "") -> DiskFacts:  # noqa: A002 - qemu-img's word
    """Return the facts of the image at ``path``; ``format`` overrules detection.

    The firmware is UEFI for a disk with an EFI system partition and no BIOS boot code, BIOS
    for every other. Raises AmbiguousFormat when nothing tells a format, UnsupportedImage for
    an image that needs other files, and the other image errors.
    """
    name = format or probe_file(os.fspath(path))
    with open_image(os.fspath(path), format=name, with_backing=False) as image:
        if image.virtual_size == 0:
            raise CorruptImage("the image holds no disk", path=os.fspath(path))
        if image.info().backing_name:
            raise UnsupportedImage(
                "the image needs another file beside it",
                path=os.fspath(path),
                hint="ask its publisher for a complete one",
            )
        head = image.pread(0, min(_HEAD, image.virtual_size))
        if name == "raw" and not format:
            _require_partitions(head, path)
        return DiskFacts(name, _whole_sectors(image), _firmware(head))


def _require_partitions(head: bytes, path: Path) -> None:
    if head[0x1FE:0x200] != b"\x55\xaa" and head[_SECTOR : _SECTOR + 8] != b"EFI PART":
        raise AmbiguousFormat(
            "nothing in the file tells its format",
            path=os.fspath(path),
            hint="name it: --format raw",
        )


def _whole_sectors(image: Image) -> int:
    return -(-image.virtual_size // _SECTOR) * _SECTOR


def _firmware(head: bytes) -> Firmware:
    if len(head) < 2 * _SECTOR or any(head[:_BOOT_CODE]):
        return Firmware.BIOS
    types = [head[0x1BE + 16 * index + 4] for index in range(4)]
    if _EFI_MBR_TYPE in types or _EFI_SYSTEM in _gpt_types(head):
        return Firmware.UEFI
    return Firmware.BIOS


def _gpt_types(head: bytes) -> set[bytes]:
    """Return the type GUIDs of a GPT (UEFI specification 5.3) that lie in ``head``."""
    if head[_SECTOR : _SECTOR + 8] != b"EFI PART":
        return set()
    first, count, size = struct.unpack_from("<QII", head, _SECTOR + 72)
    if not 128 <= size <= 4096 or first > 64:
        return set()
    starts = range(first * _SECTOR, len(head) - size + 1, size)
    return {head[start : start + 16] for start in starts[: min(count, _MAX_ENTRIES)]}
