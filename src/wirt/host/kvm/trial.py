"""A guest of 300 bytes that does what the first moments of an ordinary kernel need.

Run as ``python -I -S trial.py SECONDS`` in a process of its own, because ``KVM_RUN`` may
never return: the kernel ends this process after so many seconds. Prints one JSON object for
each step: ``step`` (the last that worked) and ``failure`` (in words; empty while all works,
``done`` is true in the last object).

Some hosts offer /dev/kvm and run firmware on it, yet cannot run a kernel: their (nested)
KVM emulates instructions instead of running them, and its emulator does not know all. An
example, seen with a KVM that has neither VT-x nor AMD-V below it: Debian's kernel creeps at
a million instructions in a second, and after half a minute dies at its first ``lock
cmpxchg16b`` (the kernel's allocator), although KVM's CPUID offers it. ``int3`` (which a
kernel tests when it patches itself) fails likewise; and QEMU itself aborts with ``-cpu
host`` because MSR 0x10A, which KVM offers too, cannot be set.

So the payload enters long mode with paging on and executes what is in ``STEPS``. After
each step it writes its number to port 0xE0; a fault writes its vector to port 0xE1.

Interface: Linux Documentation/virt/kvm/api.rst; layouts of <asm/kvm.h> for x86-64.
Instructions: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import signal
import struct
import sys
from collections.abc import Callable
from typing import NamedTuple

STEPS = (
    "nothing",
    "long mode with paging",
    "int3 through an IDT",
    "cmpxchg16b",
    "xsetbv, xsave and xrstor",
    "rdtsc",
    "wrmsr and rdmsr",
    "swapgs",
    "popcnt",
    "ten million instructions, fast",
)
"""Index: what the payload writes to port 0xE0 after it."""

_GET_API_VERSION = 0xAE00
_CREATE_VM = 0xAE01
_CHECK_EXTENSION = 0xAE03
_GET_VCPU_MMAP_SIZE = 0xAE04
_GET_SUPPORTED_CPUID = 0xC008AE05
_SET_USER_MEMORY_REGION = 0x4020AE46
_SET_TSS_ADDR = 0xAE47
_CREATE_VCPU = 0xAE41
_RUN = 0xAE80
_SET_REGS = 0x4090AE82
_GET_SREGS = 0x8138AE83
_SET_SREGS = 0x4138AE84
_GET_MSRS = 0xC008AE88
_SET_MSRS = 0x4008AE89
_SET_CPUID2 = 0x4008AE90

API_VERSION = 12
_NEEDED = {
    0: "an interrupt controller in the kernel",
    3: "memory from user space",
    4: "a place for the task state segment",
    7: "extended CPUID",
    14: "states of multiprocessors",
    21: "removal of memory",
    30: "joined memory",
}
"""KVM_CAP_…: what QEMU refuses to start without."""
_ARCH_CAPABILITIES = 0x10A
_CPUID_ENTRIES = 256
_CPUID_ENTRY = 40
_SREGS_SIZE = 312

_MEMORY = 2 << 20
_PML4, _PDPT, _PD, _GDT, _IDT, _TSS = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000
_CODE, _INT3, _FAULTS = 0x7000, 0x7800, 0x8000
_CMPXCHG, _XSAVE, _STACK = 0xA000, 0xB000, 0xF000

_TSS_PAGES = 0x3FFBD000  # three pages for the KVM of old Intel CPUs, clear of our memory
MSR_FAILURE = f"QEMU's -cpu host would abort: KVM offers MSR {_ARCH_CAPABILITIES:#x} and loses it"
_EXIT_IO, _EXIT_HLT, _EXIT_SHUTDOWN, _EXIT_FAIL_ENTRY, _EXIT_INTERNAL = 2, 5, 8, 9, 17
_STEP_PORT, _FAULT_PORT = 0xE0, 0xE1


class Features(NamedTuple):
    """What the CPU offers of the things that not every CPU has."""

    xcr0: int
    """State components to enable: x87, SSE and AVX; 0 without XSAVE."""
    popcnt: bool
    arch_capabilities: bool

    @classmethod
    def of(cls, cpuid: bytes | bytearray) -> Features:
        """Read struct kvm_cpuid2: a count, then function, index, flags, eax, ebx, ecx, edx."""
        leaves = {}
        count = min(struct.unpack_from("<I", cpuid)[0], (len(cpuid) - 8) // _CPUID_ENTRY)
        for number in range(count):
            words = struct.unpack_from("<7I", cpuid, 8 + number * _CPUID_ENTRY)
            leaves[words[0], words[1]] = words[3:]
        none = (0, 0, 0, 0)
        ecx = leaves.get((1, 0), none)[2]
        return cls(
            xcr0=leaves.get((0xD, 0), none)[0] & 7 if ecx >> 26 & 1 else 0,
            popcnt=bool(ecx >> 23 & 1),
            arch_capabilities=bool(leaves.get((7, 0), none)[3] >> 29 & 1),
        )


class TrialFailed(Exception):
    """KVM could not do something; the message says what."""


def _report(step: int) -> bytes:
    return bytes([0xB0, step, 0xE6, _STEP_PORT])  # mov al, step; out 0xE0, al


_JE_OVER_HLT = b"\x74\x01\xf4"  # je +1; hlt: a wrong result stops the guest


def instructions(features: Features) -> tuple[tuple[bytes, ...], ...]:
    """Return the machine code of each of ``STEPS``; empty for what the CPU does not offer."""
    return (
        (),
        (),
        (
            b"\x31\xdb",  # xor ebx, ebx
            b"\xcc",  # int3: the handler sets ebx
            b"\x83\xfb\x33",  # cmp ebx, 0x33
            _JE_OVER_HLT,
        ),
        (
            b"\xbf" + _u32(_CMPXCHG),  # mov edi, area
            b"\x31\xc0\x31\xd2",  # xor eax, eax; xor edx, edx: the old value is 0
            b"\xbb\x01\x00\x00\x00\x31\xc9",  # mov ebx, 1; xor ecx, ecx: the new one is 1
            b"\xf0\x48\x0f\xc7\x0f",  # lock cmpxchg16b [rdi]
            _JE_OVER_HLT,
        ),
        _xsave(features.xcr0) if features.xcr0 else (),
        (b"\x0f\x31",),  # rdtsc
        (
            b"\xb9\x82\x00\x00\xc0",  # mov ecx, 0xC0000082 (LSTAR)
            b"\xb8\x34\x12\x00\x00\x31\xd2",  # mov eax, 0x1234; xor edx, edx
            b"\x0f\x30\x31\xc0\x0f\x32",  # wrmsr; xor eax, eax; rdmsr
            b"\x3d\x34\x12\x00\x00",  # cmp eax, 0x1234
            _JE_OVER_HLT,
        ),
        (b"\x0f\x01\xf8",),  # swapgs
        _popcnt() if features.popcnt else (),
        (
            b"\xb9" + _u32(5_000_000),  # mov ecx, count
            b"\xff\xc9",  # dec ecx
            b"\x75\xfc",  # jnz -4
        ),
    )


def _xsave(xcr0: int) -> tuple[bytes, ...]:
    return (
        b"\x31\xc9\x31\xd2",  # xor ecx, ecx; xor edx, edx
        b"\xb8" + _u32(xcr0),  # mov eax, xcr0
        b"\x0f\x01\xd1",  # xsetbv
        b"\xbe" + _u32(_XSAVE),  # mov esi, area
        b"\x0f\xae\x26",  # xsave [rsi]: the components in edx:eax
        b"\x0f\xae\x2e",  # xrstor [rsi]
    )


def _popcnt() -> tuple[bytes, ...]:
    return (
        b"\xb8\x70\x00\x00\x00",  # mov eax, 0x70
        b"\xf3\x0f\xb8\xc0",  # popcnt eax, eax
        b"\x83\xf8\x03",  # cmp eax, 3
        _JE_OVER_HLT,
    )


def _u32(value: int) -> bytes:
    return struct.pack("<I", value)


def payload(features: Features) -> bytes:
    """Return the machine code: the steps, each with its report, and a hlt."""
    steps = enumerate(instructions(features))
    return b"".join(b"".join(code) + _report(step) for step, code in steps if step) + b"\xf4"


_INT3_HANDLER = b"\xbb\x33\x00\x00\x00\x48\xcf"  # mov ebx, 0x33; iretq


def _fault_handler(vector: int) -> bytes:
    return bytes([0xB0, vector, 0xE6, _FAULT_PORT, 0xF4]).ljust(8, b"\x90")


def _gate(handler: int) -> bytes:
    """A 64-bit interrupt gate: code segment 8, present, privilege 0."""
    return struct.pack("<HHBBHII", handler & 0xFFFF, 8, 0, 0x8E, handler >> 16, 0, 0)


def memory_image(features: Features) -> bytes:
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
    put(_CODE, payload(features))
    return bytes(memory)


class Machine:
    """A VM with one vCPU. The descriptors live as long as the process."""

    def __init__(self) -> None:
        self.kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        version = fcntl.ioctl(self.kvm, _GET_API_VERSION, 0)
        if version != API_VERSION:
            raise TrialFailed(f"/dev/kvm speaks version {version} of its API, not {API_VERSION}")
        for number, meaning in _NEEDED.items():
            if fcntl.ioctl(self.kvm, _CHECK_EXTENSION, number) <= 0:
                raise TrialFailed(f"KVM lacks {meaning} (capability {number})")
        self.vm = fcntl.ioctl(self.kvm, _CREATE_VM, 0)
        fcntl.ioctl(self.vm, _SET_TSS_ADDR, _TSS_PAGES)
        self.cpuid = self._supported_cpuid()
        self.features = Features.of(self.cpuid)
        self.memory = mmap.mmap(-1, _MEMORY)
        self.memory[:] = memory_image(self.features)
        self._map_memory()
        self.vcpu = fcntl.ioctl(self.vm, _CREATE_VCPU, 0)
        self.run = mmap.mmap(self.vcpu, fcntl.ioctl(self.kvm, _GET_VCPU_MMAP_SIZE, 0))
        fcntl.ioctl(self.vcpu, _SET_CPUID2, self.cpuid)
        self.loses_msr = self._loses_msr()  # before the first KVM_RUN, as QEMU does
        self._set_registers()

    def _supported_cpuid(self) -> bytearray:
        """Return struct kvm_cpuid2 with everything that KVM can show to a guest."""
        cpuid = bytearray(8 + _CPUID_ENTRIES * _CPUID_ENTRY)
        struct.pack_into("<I", cpuid, 0, _CPUID_ENTRIES)
        fcntl.ioctl(self.kvm, _GET_SUPPORTED_CPUID, cpuid)
        return cpuid

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
        _long_mode(sregs, xsave=self.features.xcr0 != 0)
        fcntl.ioctl(self.vcpu, _SET_SREGS, bytes(sregs))

    def step(self) -> tuple[int, int, int]:
        """Run to the next exit; return its reason, and port and byte of an ``out``."""
        fcntl.ioctl(self.vcpu, _RUN, 0)
        reason = struct.unpack_from("<I", self.run, 8)[0]
        if reason != _EXIT_IO:
            return reason, 0, 0
        _, _, port, _, offset = struct.unpack_from("<BBHIQ", self.run, 32)
        return reason, port, self.run[offset]

    def _loses_msr(self) -> bool:
        """True if KVM offers ARCH_CAPABILITIES and cannot set it: ``-cpu host`` then aborts."""
        if not self.features.arch_capabilities:
            return False
        msrs = bytearray(struct.pack("<IIIIQ", 1, 0, _ARCH_CAPABILITIES, 0, 0))
        if fcntl.ioctl(self.kvm, _GET_MSRS, msrs) != 1:
            return False
        return bool(fcntl.ioctl(self.vcpu, _SET_MSRS, msrs) != 1)

    def suberror(self) -> int:
        """Return the cause of an internal error; 1 is an emulation failure."""
        return int(struct.unpack_from("<I", self.run, 32)[0])


def _segment(base: int, limit: int, selector: int, kind: int, *, code: bool, system: bool) -> bytes:
    flags = (kind, 1, 0, 0 if code or system else 1, 0 if system else 1, 1 if code else 0)
    granular = 0 if system else 1
    return struct.pack("<QIH10B", base, limit, selector, *flags, granular, 0, 0, 0)


def _long_mode(sregs: bytearray, *, xsave: bool) -> None:
    """Set struct kvm_sregs to 64-bit mode with paging, SSE and (if it exists) XSAVE."""
    code = _segment(0, 0xFFFFFFFF, 8, 11, code=True, system=False)
    data = _segment(0, 0xFFFFFFFF, 16, 3, code=False, system=False)
    task = _segment(_TSS, 0x67, 0, 11, code=False, system=True)
    sregs[0:24] = code
    for index in range(1, 6):
        sregs[24 * index : 24 * index + 24] = data
    sregs[144:168] = task
    struct.pack_into("<QH6x", sregs, 192, _GDT, 0x17)
    struct.pack_into("<QH6x", sregs, 208, _IDT, 32 * 16 - 1)
    cr0, cr3, efer = 0x80050033, _PML4, 0x500
    cr4 = 0x620 | (0x40000 if xsave else 0)  # PAE, OSFXSR, OSXMMEXCPT, OSXSAVE
    struct.pack_into("<QQQQQQ", sregs, 224, cr0, 0, cr3, cr4, 0, efer)


def try_guest(report: Callable[[int], None]) -> tuple[int, str]:
    """Return the last step that worked, and what failed after it ("" if nothing)."""
    done = 0
    try:
        machine = Machine()
        while True:
            reason, port, value = machine.step()
            if reason != _EXIT_IO or port != _STEP_PORT or value != done + 1:
                break
            done = value
            report(done)
    except OSError as error:
        return done, f"KVM refused: {error.strerror}"
    except TrialFailed as error:
        return done, str(error)
    return done, _ending(machine, reason, port, value, done)


def _ending(machine: Machine, reason: int, port: int, value: int, done: int) -> str:
    if reason == _EXIT_HLT and done == len(STEPS) - 1:
        return MSR_FAILURE if machine.loses_msr else ""
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


def _print(step: int, failure: str = "", *, done: bool = False) -> None:
    sys.stdout.write(json.dumps({"step": step, "failure": failure, "done": done}) + "\n")
    sys.stdout.flush()


def main() -> int:
    signal.setitimer(signal.ITIMER_REAL, float(sys.argv[1]))  # SIGALRM ends us, and KVM_RUN
    step, failure = try_guest(_print)
    _print(step, failure, done=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
