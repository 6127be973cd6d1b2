"""Fresh identifiers of machines."""

from __future__ import annotations

import os


def random_uuid() -> str:
    """Return a random (version 4) UUID."""
    data = bytearray(os.urandom(16))
    data[6] = data[6] & 0x0F | 0x40
    data[8] = data[8] & 0x3F | 0x80
    text = data.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def random_mac() -> str:
    """Return a locally administered address with 32 random bits."""
    return "52:57:" + ":".join(f"{byte:02x}" for byte in os.urandom(4))
