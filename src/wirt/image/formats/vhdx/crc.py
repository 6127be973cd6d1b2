"""CRC-32C (Castagnoli), which the standard library does not have."""

from __future__ import annotations

from functools import cache

_REFLECTED = 0x82F63B78


@cache
def _table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (_REFLECTED if value & 1 else 0)
        table.append(value)
    return table


def crc32c(data: bytes | bytearray) -> int:
    """Return the CRC-32C of ``data``."""
    table = _table()
    value = 0xFFFFFFFF
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


def crc_fits(data: bytes, field: int) -> bool:
    """Say whether the CRC stored at ``field`` is that of ``data`` with the field zeroed."""
    stored = int.from_bytes(data[field : field + 4], "little")
    return stored == crc32c(data[:field] + bytes(4) + data[field + 4 :])
