"""Kernels for direct boot: found in the guest's tree, unpacked for speed.

A bzImage (Linux Documentation/arch/x86/boot.rst) is a small real-mode part, a decompressor
and the compressed kernel, an ELF file. QEMU starts that ELF file directly when it carries a
PVH entry (the Xen note 18, XEN_ELFNOTE_PHYS32_ENTRY; the kernel's CONFIG_PVH): the guest then
need not decompress itself, which takes an emulated processor four seconds.

========  ====  ==========================================================
offset    size  field of the header
========  ====  ==========================================================
0x1f1     1     sectors of the real-mode part after the first; 0 means 4
0x202     4     ``HdrS``
0x206     2     protocol version; 0x0208 and later tell where the payload is
0x248     4     payload: offset from the end of the real-mode part
0x24c     4     payload: length in bytes
========  ====  ==========================================================
"""

from __future__ import annotations

import struct
from pathlib import Path

from wirt.errors import CorruptImage, HostError

_MAX_KERNEL = 256 << 20
_PT_NOTE = 4
_PVH_NOTE = 18


def find_kernel(tree: Path) -> tuple[Path, Path]:
    """Return the newest kernel of ``tree`` and its modules. Raises HostError without one."""
    kernels = sorted((tree / "boot").glob("vmlinuz-*"), key=lambda path: _natural(path.name))
    for kernel in reversed(kernels):
        modules = tree / "usr/lib/modules" / kernel.name.removeprefix("vmlinuz-")
        if (modules / "modules.dep").is_file():
            return kernel, modules
    raise HostError("no kernel was installed in the guest")


def bootable(data: bytes, *, path: str = "") -> bytes:
    """Return the quickest form of the kernel ``data`` that QEMU can start.

    Raises CorruptImage for something that is no kernel.
    """
    if data[:4] == b"\x7fELF":
        return data
    if len(data) < 0x260 or data[0x202:0x206] != b"HdrS":
        raise CorruptImage("not a Linux kernel", path=path)
    payload = _payload(data)
    unpacked = _decompress(payload) if payload else None
    return unpacked if unpacked and has_pvh_entry(unpacked) else data


def has_pvh_entry(data: bytes) -> bool:
    """Whether the 64-bit ELF file ``data`` says where a PVH loader enters it."""
    if data[:6] != b"\x7fELF\x02\x01" or len(data) < 64:
        return False
    table, size, count = struct.unpack_from("<Q", data, 32) + struct.unpack_from("<HH", data, 54)
    for index in range(count):
        start = table + index * size
        if size < 56 or start + 56 > len(data):
            return False
        if struct.unpack_from("<I", data, start)[0] == _PT_NOTE:
            offset, _, _, length = struct.unpack_from("<QQQQ", data, start + 8)
            if _PVH_NOTE in _xen_notes(data[offset : offset + min(length, 1 << 20)]):
                return True
    return False


def _xen_notes(notes: bytes) -> list[int]:
    """Return the types of Xen's notes: name size, content size, type, name, content."""
    types, place = [], 0
    while place + 12 <= len(notes):
        name_size, content_size, kind = struct.unpack_from("<III", notes, place)
        if notes[place + 12 : place + 16] == b"Xen\0" and name_size == 4:
            types.append(kind)
        place += 12 + (name_size + 3 & ~3) + (content_size + 3 & ~3)
    return types


def _payload(data: bytes) -> bytes:
    version = struct.unpack_from("<H", data, 0x206)[0]
    if version < 0x208:
        return b""
    start = ((data[0x1F1] or 4) + 1) * 512
    offset, length = struct.unpack_from("<II", data, 0x248)
    return data[start + offset : start + offset + length]


def _decompress(payload: bytes) -> bytes | None:
    """Return what ``payload`` unpacks to, or None if it is in none of the known forms.

    The kernel appends its unpacked size to the payload: what follows the end is ignored.
    """
    import lzma
    import zlib

    try:
        if payload.startswith(b"\xfd7zXZ\0"):
            return lzma.LZMADecompressor().decompress(payload, _MAX_KERNEL)
        if payload.startswith(b"\x1f\x8b"):
            return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(payload, _MAX_KERNEL)
        if payload.startswith(b"\x28\xb5\x2f\xfd"):
            import zstandard

            reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(payload)
            return reader.read(_MAX_KERNEL)
    except (lzma.LZMAError, zlib.error):
        return None
    return None


def _natural(name: str) -> list[tuple[int, str]]:
    import re

    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
