"""Test material: TPM 2.0 commands for a guest that has no tools but a shell.

The bytes are those of the TCG's "Trusted Platform Module Library", part 3 (commands), with the
owner's empty password as authorization.
"""

from __future__ import annotations

import re
import struct

_SESSIONS, _NO_SESSIONS = 0x8002, 0x8001
_OWNER, _PASSWORD = 0x40000001, 0x40000009
_SHA256 = 0x000B
_OWNER_WRITES_AND_READS = 0x00020002
_AUTHORIZED = struct.pack(">IIHBH", 9, _PASSWORD, 0, 0, 0)


def _command(tag: int, code: int, body: bytes) -> bytes:
    return struct.pack(">HII", tag, 10 + len(body), code) + body


def define(index: int, size: int) -> bytes:
    """TPM2_NV_DefineSpace: an index that the owner writes and reads."""
    public = struct.pack(">IHIHH", index, _SHA256, _OWNER_WRITES_AND_READS, 0, size)
    body = struct.pack(">I", _OWNER) + _AUTHORIZED + struct.pack(">HH", 0, len(public)) + public
    return _command(_SESSIONS, 0x12A, body)


def write(index: int, data: bytes) -> bytes:
    """TPM2_NV_Write."""
    body = struct.pack(">II", _OWNER, index) + _AUTHORIZED
    return _command(_SESSIONS, 0x137, body + struct.pack(">H", len(data)) + data + bytes(2))


def read(index: int, size: int) -> bytes:
    """TPM2_NV_Read."""
    body = struct.pack(">II", _OWNER, index) + _AUTHORIZED + struct.pack(">HH", size, 0)
    return _command(_SESSIONS, 0x14E, body)


def extend(pcr: int, digest: bytes) -> bytes:
    """TPM2_PCR_Extend of the SHA-256 bank."""
    body = struct.pack(">I", pcr) + _AUTHORIZED + struct.pack(">IH", 1, _SHA256) + digest
    return _command(_SESSIONS, 0x182, body)


def read_pcr(pcr: int) -> bytes:
    """TPM2_PCR_Read of the SHA-256 bank."""
    bits = (1 << pcr).to_bytes(3, "little")
    return _command(_NO_SESSIONS, 0x17E, struct.pack(">IHB", 1, _SHA256, 3) + bits)


def shell_line(command: bytes) -> str:
    """Return what a shell does to send a command and print the answer in hexadecimal.

    The device takes a command in one write, and answers whoever has it open.
    """
    text = "".join(f"\\{byte:03o}" for byte in command)
    return (
        f"printf '{text}' >/dev/command; exec 3<>/dev/tpm0; "
        "dd if=/dev/command bs=4096 >&3 2>/dev/null; "
        "dd bs=4096 count=1 <&3 2>/dev/null | od -An -v -tx1; exec 3>&-"
    )


def answer(printed: str) -> bytes:
    """Return the parameters of an answer; a refusal fails."""
    data = bytes.fromhex("".join(re.findall(r"\b[0-9a-f]{2}\b", printed)))
    _, size, code = struct.unpack_from(">HII", data)
    assert (size, code) == (len(data), 0), data.hex()
    return data[10:]


def stored(printed: str) -> bytes:
    """Return what an index holds: the parameters of TPM2_NV_Read."""
    _, size = struct.unpack_from(">IH", answer(printed))
    return answer(printed)[6 : 6 + size]


def pcr_of(printed: str) -> str:
    """Return the digest that TPM2_PCR_Read tells, in hexadecimal."""
    return answer(printed)[-32:].hex()
