"""Findings on the CPU and on KVM."""

from __future__ import annotations

import os

from wirt.host.confine import group_name
from wirt.host.cpu import Cpu, host_cpu
from wirt.host.finding import Finding
from wirt.host.kernel import read_line
from wirt.host.kvm.verdict import DEVICE, Verdict, cached_verdict, permission_hint


def acceleration(cache_dir: str) -> list[Finding]:
    """Examine the CPU, /dev/kvm, whether KVM runs a guest, and nesting."""
    cpu = host_cpu()
    return [_cpu(cpu), _device(), judge(cached_verdict(cache_dir)), _nested(cpu)]


def _cpu(cpu: Cpu) -> Finding:
    words = {"vmx": "with Intel VT-x", "svm": "with AMD-V", "": "without VT-x and AMD-V"}
    inside = ", and is itself virtual" if cpu.is_virtual else ""
    detail = f"{cpu.model or cpu.vendor or 'unknown'} {words[cpu.extension]}{inside}"
    return Finding("cpu", "CPU", "ok" if cpu.extension else "info", detail)


def _device() -> Finding:
    try:
        info = os.stat(DEVICE)
    except OSError:
        return Finding("kvm-device", DEVICE, "info", "absent")
    may = os.access(DEVICE, os.R_OK | os.W_OK)
    detail = f"mode {info.st_mode & 0o777:o}, group {group_name(info.st_gid)}"
    if may:
        return Finding("kvm-device", DEVICE, "ok", detail)
    return Finding("kvm-device", DEVICE, "warn", f"not for you: {detail}", permission_hint(DEVICE))


def judge(verdict: Verdict) -> Finding:
    """Say what the verdict means for machines."""
    if verdict.usable:
        return Finding("kvm", "KVM", "ok", verdict.reason)
    detail = f"{verdict.reason}; machines run in software (TCG), many times slower"
    return Finding("kvm", "KVM", "warn", detail, verdict.hint)


def _nested(cpu: Cpu) -> Finding:
    value = read_line(f"/sys/module/{cpu.module}/parameters/nested")
    if value in {"1", "Y"}:
        return Finding("kvm-nested", "nested KVM", "ok", "guests can run KVM themselves")
    if not value:
        return Finding("kvm-nested", "nested KVM", "info", f"{cpu.module} is not loaded")
    cure = f"echo options {cpu.module} nested=1 > /etc/modprobe.d/{cpu.module}.conf, and reboot"
    return Finding("kvm-nested", "nested KVM", "info", "guests cannot run KVM themselves", cure)
