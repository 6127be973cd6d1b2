"""The host's CPU, as the kernel shows it."""

from __future__ import annotations

import msgspec

_MOST = 1 << 20


class Cpu(msgspec.Struct, frozen=True):
    """What matters to virtual machines."""

    vendor: str
    model: str
    flags: frozenset[str]

    @property
    def extension(self) -> str:
        """``vmx`` (Intel VT-x), ``svm`` (AMD-V), or empty: KVM needs one of them."""
        return next((flag for flag in ("vmx", "svm") if flag in self.flags), "")

    @property
    def is_virtual(self) -> bool:
        """True if this host is itself a guest."""
        return "hypervisor" in self.flags

    @property
    def module(self) -> str:
        """Return KVM's module for this vendor."""
        return "kvm_amd" if self.vendor in {"AuthenticAMD", "HygonGenuine"} else "kvm_intel"


def parse_cpuinfo(text: str) -> Cpu:
    """Read the first processor of /proc/cpuinfo; what is absent is empty."""
    first = text.split("\n\n", 1)[0]
    fields = (line.partition(":") for line in first.splitlines())
    values = {key.strip(): value.strip() for key, _, value in fields}
    return Cpu(
        vendor=values.get("vendor_id", ""),
        model=values.get("model name", ""),
        flags=frozenset(values.get("flags", "").split()),
    )


def host_cpu() -> Cpu:
    """Return the CPU of this host."""
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        return parse_cpuinfo(file.read(_MOST))
