"""Sums that a damaged image would fail at once: set right again, so that the rest is read."""

import struct

from wirt.image.formats.vhdx.crc import crc32c

_KIB = 1 << 10


def mend(name: str, data: bytearray) -> None:
    """Set the checksums right that the format keeps in fixed places."""
    if name == "vpc":
        _mend_vpc(data)
    elif name == "vhdx":
        for offset, length in ((64, 4), (128, 4), (192, 64), (256, 64)):
            _mend_crc(data, offset * _KIB, length * _KIB)


def _mend_vpc(data: bytearray) -> None:
    for offset, field, length in ((0, 64, 512), (512, 36, 1024), (len(data) - 512, 64, 512)):
        if offset >= 0 and bytes(data[offset : offset + 8]) in {b"conectix", b"cxsparse"}:
            data[offset + field : offset + field + 4] = bytes(4)
            total = ~sum(data[offset : offset + length]) & 0xFFFFFFFF
            data[offset + field : offset + field + 4] = struct.pack(">I", total)


def _mend_crc(data: bytearray, offset: int, length: int) -> None:
    if len(data) < offset + length:
        return
    data[offset + 4 : offset + 8] = bytes(4)
    total = crc32c(bytes(data[offset : offset + length]))
    data[offset + 4 : offset + 8] = struct.pack("<I", total)
