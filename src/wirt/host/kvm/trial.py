"""A guest of 200 bytes that does what the first moments of an ordinary kernel need.

Run as ``python -I -S trial.py`` in a process of its own, because ``KVM_RUN`` may never
return: the parent has a deadline. Prints one JSON object: ``step`` (the last that worked),
``failure`` (in words, empty if all worked).

Some hosts offer /dev/kvm and run firmware on it, yet cannot run a kernel: their (nested)
KVM emulates instructions instead of running them, and its emulator does not know all. So
the payload enters long mode with paging on and executes, in this order, ``int3`` through an
IDT with ``iretq``, ``cmpxchg16b``, ``xsetbv``, ``xsave`` and ``xrstor``, ``rdtsc``,
``wrmsr``/``rdmsr`` of LSTAR, and ``swapgs``. After each it writes a step number to port
0xE0; a fault writes its vector to port 0xE1.

Interface: Linux Documentation/virt/kvm/api.rst; layouts of <asm/kvm.h> for x86-64.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import struct
import sys

STEPS = (
    "nothing",
    "long mode with paging",
    "int3 through an IDT",
    "cmpxchg16b",
    "xsetbv, xsave and xrstor",
    "rdtsc",
    "wrmsr and rdmsr",
    "swapgs",
)
"""Index: what the payload writes to port 0xE0 after it."""

_GET_API_VERSION = 0xAE00
_CREATE_VM = 0xAE01
_GET_VCPU_MMAP_SIZE = 0xAE04
_GET_SUPPORTED_CPUID = 0xC008AE05
_SET_USER_MEMORY_REGION = 0x4020AE46
_SET_TSS_ADDR = 0xAE47
_CREATE_VCPU = 0xAE41
_RUN = 0xAE80
_SET_REGS = 0x4090AE82
_GET_SREGS = 0x8138AE83
_SET_SREGS = 0x4138AE84
_SET_CPUID2 = 0x4008AE90

API_VERSION = 12
_CPUID_ENTRIES = 256
_CPUID_ENTRY = 40
_SREGS_SIZE = 312

_MEMORY = 2 << 20
_PML4, _PDPT, _PD, _GDT, _IDT, _TSS = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000
_CODE, _INT3, _FAULTS = 0x7000, 0x7800, 0x8000
_CMPXCHG, _XSAVE, _STACK = 0xA000, 0xB000, 0xF000

_TSS_PAGES = 0x3FFBD000  # three pages for the KVM of old Intel CPUs, clear of our memory
_EXIT_IO, _EXIT_HLT, _EXIT_SHUTDOWN, _EXIT_FAIL_ENTRY, _EXIT_INTERNAL = 2, 5, 8, 9, 17
_STEP_PORT, _FAULT_PORT = 0xE0, 0xE1


class TrialFailed(Exception):
    """KVM could not do something; the message says what."""


def _report(step: int) -> bytes:
    return bytes([0xB0, step, 0xE6, _STEP_PORT])  # mov al, step; out 0xE0, al


def payload(xcr0: int) -> bytes:
    """Return the machine code. ``xcr0`` are the state components to enable."""
    return b"".join(
        (
            _report(1),
            b"\x31\xdb",  # xor ebx, ebx
            b"\xcc",  # int3: the handler sets ebx
            b"\x83\xfb\x33",  # cmp ebx, 0x33
            b"\x74\x01\xf4",  # je +1; hlt
            _report(2),
            b"\xbf" + struct.pack("<I", _CMPXCHG),  # mov edi, area
            b"\x31\xc0\x31\xd2",  # xor eax, eax; xor edx, edx: the old value is 0
            b"\xbb\x01\x00\x00\x00\x31\xc9",  # mov ebx, 1; xor ecx, ecx: the new one is 1
            b"\xf0\x48\x0f\xc7\x0f",  # lock cmpxchg16b [rdi]
            b"\x74\x01\xf4",  # je +1; hlt
            _report(3),
            b"\x31\xc9\x31\xd2",  # xor ecx, ecx; xor edx, edx
            b"\xb8" + struct.pack("<I", xcr0),  # mov eax, xcr0
            b"\x0f\x01\xd1",  # xsetbv
            b"\xbe" + struct.pack("<I", _XSAVE),  # mov esi, area
            b"\x0f\xae\x26",  # xsave [rsi]
            b"\x0f\xae\x2e",  # xrstor [rsi]
            _report(4),
            b"\x0f\x31",  # rdtsc
            _report(5),
            b"\xb9\x82\x00\x00\xc0",  # mov ecx, 0xC0000082 (LSTAR)
            b"\xb8\x34\x12\x00\x00\x31\xd2",  # mov eax, 0x1234; xor edx, edx
            b"\x0f\x30\x31\xc0\x0f\x32",  # wrmsr; xor eax, eax; rdmsr
            b"\x3d\x34\x12\x00\x00",  # cmp eax, 0x1234
            b"\x74\x01\xf4",  # je +1; hlt
            _report(6),
            b"\x0f\x01\xf8",  # swapgs
            _report(7),
            b"\xf4",  # hlt
        )
    )


_INT3_HANDLER = b"\xbb\x33\x00\x00\x00\x48\xcf"  # mov ebx, 0x33; iretq


def _fault_handler(vector: int) -> bytes:
    return bytes([0xB0, vector, 0xE6, _FAULT_PORT, 0xF4]).ljust(8, b"\x90")


def _gate(handler: int) -> bytes:
    """A 64-bit interrupt gate: code segment 8, present, privilege 0."""
    return struct.pack("<HHBBHII", handler & 0xFFFF, 8, 0, 0x8E, handler >> 16, 0, 0)


def memory_image(xcr0: int) -> bytes:
    """Return the guest's memory: tables, handlers and code, identity mapped."""
    memory = bytearray(_MEMORY)

    def put(address: int, data: bytes) -> None:
        memory[address : address + len(data)] = data

    put(_PML4, struct.pack("<Q", _PDPT | 3))
    put(_PDPT, struct.pack("<Q", _PD | 3))
    put(_PD, struct.pack("<Q", 0x83))  # present, writable, 2 MiB
    put(_GDT, struct.pack("<QQQ", 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF))
    for vector in range(32):
        put(_FAULTS + 8 * vector, _fault_handler(vector))
        put(_IDT + 16 * vector, _gate(_FAULTS + 8 * vector))
    put(_IDT + 16 * 3, _gate(_INT3))
    put(_INT3, _INT3_HANDLER)
    put(_CODE, payload(xcr0))
    return bytes(memory)


class Machine:
    """A VM with one vCPU. The descriptors live as long as the process."""

    def __init__(self) -> None:
        self.kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        version = fcntl.ioctl(self.kvm, _GET_API_VERSION, 0)
        if version != API_VERSION:
            raise TrialFailed(f"/dev/kvm speaks version {version} of its API, not {API_VERSION}")
        self.vm = fcntl.ioctl(self.kvm, _CREATE_VM, 0)
        fcntl.ioctl(self.vm, _SET_TSS_ADDR, _TSS_PAGES)
        self.cpuid, xcr0 = self._supported_cpuid()
        self.memory = mmap.mmap(-1, _MEMORY)
        self.memory[:] = memory_image(xcr0)
        self._map_memory()
        self.vcpu = fcntl.ioctl(self.vm, _CREATE_VCPU, 0)
        self.run = mmap.mmap(self.vcpu, fcntl.ioctl(self.kvm, _GET_VCPU_MMAP_SIZE, 0))
        fcntl.ioctl(self.vcpu, _SET_CPUID2, self.cpuid)
        self._set_registers()

    def _supported_cpuid(self) -> tuple[bytearray, int]:
        """Return CPUID for the guest, and the XSAVE components to try: x87, SSE and AVX."""
        cpuid = bytearray(8 + _CPUID_ENTRIES * _CPUID_ENTRY)
        struct.pack_into("<I", cpuid, 0, _CPUID_ENTRIES)
        fcntl.ioctl(self.kvm, _GET_SUPPORTED_CPUID, cpuid)
        count = struct.unpack_from("<I", cpuid)[0]
        for index in range(min(count, _CPUID_ENTRIES)):
            function, sub, _, eax = struct.unpack_from("<IIII", cpuid, 8 + index * _CPUID_ENTRY)
            if function == 0xD and sub == 0:
                return cpuid, eax & 7
        raise TrialFailed("the CPU offers no XSAVE, which kernels and programs need")

    def _map_memory(self) -> None:
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        region = struct.pack("<IIQQQ", 0, 0, 0, _MEMORY, address)
        fcntl.ioctl(self.vm, _SET_USER_MEMORY_REGION, region)

    def _set_registers(self) -> None:
        registers = [0] * 18  # rax … r15, rip, rflags
        registers[6] = _STACK  # rsp
        registers[16], registers[17] = _CODE, 2
        fcntl.ioctl(self.vcpu, _SET_REGS, struct.pack("<18Q", *registers))
        sregs = bytearray(_SREGS_SIZE)
        fcntl.ioctl(self.vcpu, _GET_SREGS, sregs)
        _long_mode(sregs)
        fcntl.ioctl(self.vcpu, _SET_SREGS, bytes(sregs))

    def step(self) -> tuple[int, int, int]:
        """Run to the next exit; return its reason, and port and byte of an ``out``."""
        fcntl.ioctl(self.vcpu, _RUN, 0)
        reason = struct.unpack_from("<I", self.run, 8)[0]
        if reason != _EXIT_IO:
            return reason, 0, 0
        _, _, port, _, offset = struct.unpack_from("<BBHIQ", self.run, 32)
        return reason, port, self.run[offset]

    def suberror(self) -> int:
        """Return the cause of an internal error; 1 is an emulation failure."""
        return int(struct.unpack_from("<I", self.run, 32)[0])


def _segment(base: int, limit: int, selector: int, kind: int, *, code: bool, system: bool) -> bytes:
    flags = (kind, 1, 0, 0 if code or system else 1, 0 if system else 1, 1 if code else 0)
    granular = 0 if system else 1
    return struct.pack("<QIH10B", base, limit, selector, *flags, granular, 0, 0, 0)


def _long_mode(sregs: bytearray) -> None:
    """Set struct kvm_sregs to 64-bit mode with paging, SSE and XSAVE enabled."""
    code = _segment(0, 0xFFFFFFFF, 8, 11, code=True, system=False)
    data = _segment(0, 0xFFFFFFFF, 16, 3, code=False, system=False)
    task = _segment(_TSS, 0x67, 0, 11, code=False, system=True)
    sregs[0:24] = code
    for index in range(1, 6):
        sregs[24 * index : 24 * index + 24] = data
    sregs[144:168] = task
    struct.pack_into("<QH6x", sregs, 192, _GDT, 0x17)
    struct.pack_into("<QH6x", sregs, 208, _IDT, 32 * 16 - 1)
    cr0, cr3, cr4, efer = 0x80050033, _PML4, 0x40620 | 0x20, 0x500
    struct.pack_into("<QQQQQQ", sregs, 224, cr0, 0, cr3, cr4, 0, efer)


def try_guest() -> tuple[int, str]:
    """Return the last step that worked, and what failed after it ("" if nothing)."""
    try:
        machine = Machine()
    except OSError as error:
        return 0, f"KVM cannot make a machine: {error.strerror}"
    except TrialFailed as error:
        return 0, str(error)
    done = 0
    for _ in range(4 * len(STEPS)):
        try:
            reason, port, value = machine.step()
        except OSError as error:
            return done, f"KVM_RUN failed: {error.strerror}"
        if reason == _EXIT_IO and port == _STEP_PORT:
            done = value
        else:
            return done, _ending(machine, reason, port, value, done)
    return done, "the guest ran in circles"


def _ending(machine: Machine, reason: int, port: int, value: int, done: int) -> str:
    if reason == _EXIT_HLT and done == len(STEPS) - 1:
        return ""
    if reason == _EXIT_IO and port == _FAULT_PORT:
        return f"the CPU raised exception {value}"
    if reason == _EXIT_HLT:
        return "the CPU computed a wrong result"
    if reason == _EXIT_INTERNAL:
        suberror = machine.suberror()
        kind = "emulation failure" if suberror == 1 else f"suberror {suberror}"
        return f"KVM internal error: {kind}"
    words = {_EXIT_SHUTDOWN: "triple fault", _EXIT_FAIL_ENTRY: "the CPU refused to enter the guest"}
    return words.get(reason, f"KVM left the guest for reason {reason}")


def main() -> int:
    step, failure = try_guest()
    sys.stdout.write(json.dumps({"step": step, "failure": failure}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
