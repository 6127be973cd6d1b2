"""A BIOS of 64 KiB that brings a PC to where the trial's guest begins: long mode, paging on.

With it QEMU itself, under any accelerator, runs the payload that the trial runs through the
KVM ioctls, so the two can be compared.
"""

import struct

from wirt.host.kvm import trial


def bios():
    """Return the image: it is mapped below 1 MiB and executed at its last 16 bytes."""
    image = bytearray(b"\xf4" * 0x10000)
    tables = 0x100
    code = b"".join(
        (
            b"\xfa",  # cli
            b"\x2e\x66\x0f\x01\x16" + struct.pack("<H", tables),  # lgdt cs:[tables]
            b"\x2e\x66\x0f\x01\x1e" + struct.pack("<H", tables + 8),  # lidt cs:[tables + 8]
            b"\x66\xbc" + struct.pack("<I", trial._STACK),  # mov esp, stack
            _eax(0x620) + b"\x0f\x22\xe0",  # mov cr4, eax
            _eax(trial._PML4) + b"\x0f\x22\xd8",  # mov cr3, eax
            b"\x66\xb9\x80\x00\x00\xc0",  # mov ecx, 0xC0000080 (EFER)
            _eax(0x100) + b"\x66\x31\xd2\x0f\x30",  # xor edx, edx; wrmsr
            _eax(0x80050033) + b"\x0f\x22\xc0",  # mov cr0, eax
            b"\x66\xea" + struct.pack("<IH", 0x9000, 8),  # jmp 8:0x9000
        )
    )
    image[0 : len(code)] = code
    image[tables : tables + 6] = struct.pack("<HI", 0x17, trial._GDT)
    image[tables + 8 : tables + 14] = struct.pack("<HI", 32 * 16 - 1, trial._IDT)
    image[0xFFF0:0xFFF5] = b"\xea\x00\x00\x00\xf0"  # jmp 0xF000:0
    return bytes(image)


def _eax(value):
    return b"\x66\xb8" + struct.pack("<I", value)  # mov eax, value


def memory(features):
    """Return the first 64 KiB of the trial's memory, and a way to it at 0x9000."""
    image = bytearray(trial.memory_image(features)[:0x10000])
    set_osxsave = b"\x0f\x20\xe0\x0d\x00\x00\x04\x00\x0f\x22\xe0"  # mov rax, cr4; or; mov
    start = (set_osxsave if features.xcr0 else b"") + b"\xb8" + struct.pack("<I", trial._CODE)
    start += b"\xff\xe0"  # jmp rax
    image[0x9000 : 0x9000 + len(start)] = start
    return bytes(image)
