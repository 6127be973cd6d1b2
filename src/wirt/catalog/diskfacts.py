r"""What a disk image file is: format, virtual size, and the firmware that can boot it.

Only files that no guest has ever written are inspected: a raw disk can hold anything at its
start. qcow2 (QEMU docs/interop/qcow2.rst) is told by its magic; raw by a partition table.

======  ====  =====================================================================
offset  size  field of a qcow2 header (big endian)
======  ====  =====================================================================
0       4     ``QFI\xfb``
4       4     version, 2 or 3
8       8     offset of the name of a backing file, 0 without
24      8     virtual size in bytes
72      8     incompatible features (version 3); bit 2: data lie in another file
======  ====  =====================================================================
"""

from __future__ import annotations

import os
import struct
import uuid
from pathlib import Path
from typing import NamedTuple

from wirt.catalog.image import Firmware
from wirt.errors import AmbiguousFormat, CorruptImage, NotThisFormat, UnsupportedImage

_SECTOR = 512
_QCOW2 = b"QFI\xfb"
_OTHERS = {
    b"KDMV": "vmdk",
    b"# Disk De": "vmdk",
    b"vhdxfile": "vhdx",
    b"conectix": "vpc",
    b"<<< ": "vdi",
    b"QED\0": "qed",
    b"WithoutFr": "parallels",
    b"LUKS": "luks",
}
_EFI_SYSTEM = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b").bytes_le
_EFI_MBR_TYPE = 0xEF
_BOOT_CODE = 440
_MAX_ENTRIES = 1024


class DiskFacts(NamedTuple):
    """Format as ``qemu-img -f`` names it, and virtual size in bytes."""

    format: str
    virtual_size: int


def inspect_disk(path: Path, *, format: str = "") -> DiskFacts:  # noqa: A002 - qemu-img's word
    """Return the facts of the image at ``path``; ``format`` overrules detection.

    Raises AmbiguousFormat when nothing tells a format, UnsupportedImage for a format or
    feature that the catalog does not take, CorruptImage.
    """
    with path.open("rb") as file:
        head = file.read(34 * _SECTOR)
    found = format or _detect(head, path)
    if found == "raw":
        size = path.stat().st_size
        return DiskFacts("raw", -(-size // _SECTOR) * _SECTOR)
    if found == "qcow2":
        return DiskFacts("qcow2", _qcow2_size(head, path))
    raise UnsupportedImage(
        f"images of format {found} cannot stand in the catalog",
        path=os.fspath(path),
        hint="convert it first: wirt img convert -O qcow2",
    )


def detect_firmware(path: Path, facts: DiskFacts) -> Firmware:
    """Return UEFI for a raw disk with an EFI system partition and no BIOS boot code.

    Images of other formats are taken for BIOS: published ones start either way.
    """
    if facts.format != "raw":
        return Firmware.BIOS
    with path.open("rb") as file:
        head = file.read(34 * _SECTOR)
    if len(head) < 2 * _SECTOR or any(head[:_BOOT_CODE]):
        return Firmware.BIOS
    types = [head[0x1BE + 16 * index + 4] for index in range(4)]
    if _EFI_MBR_TYPE in types or _EFI_SYSTEM in _gpt_types(head):
        return Firmware.UEFI
    return Firmware.BIOS


def _detect(head: bytes, path: Path) -> str:
    if head.startswith(_QCOW2):
        return "qcow2"
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            return name
    if head[0x1FE:0x200] == b"\x55\xaa" or head[_SECTOR : _SECTOR + 8] == b"EFI PART":
        return "raw"
    raise AmbiguousFormat(
        "nothing in the file tells its format",
        path=os.fspath(path),
        hint="name it: --format raw",
    )


def _qcow2_size(head: bytes, path: Path) -> int:
    where = os.fspath(path)
    if len(head) < 104 or not head.startswith(_QCOW2):
        raise NotThisFormat("not a qcow2 image", path=where)
    version, backing = struct.unpack_from(">IQ", head, 4)
    size = struct.unpack_from(">Q", head, 24)[0]
    if version not in {2, 3} or not 0 < size < 1 << 60:
        raise CorruptImage("the qcow2 header is damaged", path=where)
    if backing or (version == 3 and struct.unpack_from(">Q", head, 72)[0] & 4):
        raise UnsupportedImage(
            "the image needs another file beside it",
            path=where,
            hint="ask its publisher for a complete one",
        )
    return int(size)


def _gpt_types(head: bytes) -> set[bytes]:
    """Return the type GUIDs of a GPT (UEFI specification 5.3) that lie in ``head``."""
    if head[_SECTOR : _SECTOR + 8] != b"EFI PART":
        return set()
    first, count, size = struct.unpack_from("<QII", head, _SECTOR + 72)
    if not 128 <= size <= 4096 or first > 64:
        return set()
    starts = range(first * _SECTOR, len(head) - size + 1, size)
    return {head[start : start + 16] for start in starts[: min(count, _MAX_ENTRIES)]}
