"""The verdict on KVM: is it there, may we use it, and does it really run a guest?"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from typing import Literal

import msgspec

from wirt.host import cache
from wirt.host.confine import device_group, group_name
from wirt.host.cpu import Cpu, host_cpu
from wirt.host.kernel import read_line
from wirt.host.process import detach, spawn
from wirt.typed_json import decode

DEVICE = "/dev/kvm"
_TRIAL_SECONDS = 5.0
_KILL_SECONDS = 1.0
_MAX_ANSWER = 8192
_FORMAT = 2
_PATIENCE = 600.0
"""Seconds for which "it did not answer in time" is believed: the host may have been busy."""

Fault = Literal["", "no-device", "no-permission", "no-answer", "guest-failed"]


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether KVM can be used; if not, why and what helps."""

    usable: bool
    reason: str
    hint: str = ""
    fault: Fault = ""
    step: str = ""
    """The step of the trial guest that failed, if it came so far."""


class _Cached(msgspec.Struct, frozen=True):
    format: int
    host: str
    verdict: Verdict
    expires: float
    """Seconds since the epoch; 0: it holds until the next boot."""


class _Answer(msgspec.Struct, frozen=True):
    step: int
    failure: str
    done: bool


def verdict() -> Verdict:
    """Look, and run a small guest for at most five seconds."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return closed_device(error, host_cpu())
    found = _try()
    return _for_qemu(found) if found.usable else found


def closed_device(error: OSError, cpu: Cpu) -> Verdict:
    """Explain why /dev/kvm cannot be opened."""
    if error.errno == errno.EACCES:
        return _unusable(
            "no-permission", f"you may not open {DEVICE}", permission_hint(DEVICE)
        )  # fmt: skip
    if error.errno == errno.EPERM:
        return _unusable(
            "no-permission", f"this container may not open {DEVICE}",
            f"give it the device, for example: podman run --device {DEVICE}",
        )  # fmt: skip
    if error.errno == errno.ENOENT:
        return _unusable("no-device", f"there is no {DEVICE}", _device_hint(cpu))
    words = f"{DEVICE} cannot be opened: {error.strerror}"
    return _unusable("no-device", words, _device_hint(cpu))


def permission_hint(device: str) -> str:
    """Return how an ordinary user comes to a device: join its group, or give it one."""
    group = device_group(device)
    if group:
        return f"usermod -aG {group_name(group)} $USER, then log in again"
    return f"as root: groupadd --system --force kvm; chgrp kvm {device}; chmod 660 {device}"


def _device_hint(cpu: Cpu) -> str:
    if cpu.extension:
        return f"modprobe {cpu.module}"
    if cpu.is_virtual:
        return "this host is a guest: switch nested virtualization on in its hypervisor"
    return "switch virtualization (Intel VT-x, AMD-V) on in the firmware setup"


def _for_qemu(found: Verdict) -> Verdict:
    """Refuse a device that root can open and the unprivileged QEMU below root cannot."""
    info = os.stat(DEVICE)
    open_to_all = info.st_mode & 0o006 == 0o006
    open_to_group = info.st_gid != 0 and info.st_mode & 0o060 == 0o060
    if os.geteuid() != 0 or open_to_all or open_to_group:
        return found
    return _unusable(
        "no-permission",
        f"only root may open {DEVICE} ({stat.filemode(info.st_mode)}), and QEMU never runs as root",
        permission_hint(DEVICE),
    )


def _try() -> Verdict:
    """Run the trial. It may hang in the kernel, so nothing here waits for it without end."""
    script = os.path.join(os.path.dirname(__file__), "trial.py")
    line = [sys.executable, "-I", "-S", script, str(_TRIAL_SECONDS)]
    output = os.memfd_create("wirt-kvm-trial", os.MFD_CLOEXEC)
    try:
        _await(spawn(line, stdout=output, stderr=subprocess.DEVNULL))
        return judge(os.pread(output, _MAX_ANSWER, 0))
    finally:
        os.close(output)


def _await(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_TRIAL_SECONDS + _KILL_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        detach(process)  # a process stuck in the kernel cannot be waited for
    except BaseException:
        process.kill()
        detach(process)
        raise


def judge(output: bytes) -> Verdict:
    """Return what the trial's output means. It can be cut off anywhere."""
    from wirt.host.kvm.trial import MSR_FAILURE, STEPS

    lines = output.split(b"\n")[:-1]
    try:
        last = decode(lines[-1], _Answer) if lines else _Answer(0, "", done=False)
    except msgspec.MsgspecError:
        return _unusable("no-answer", "the trial of KVM answered nonsense", _REPORT)
    failed = STEPS[last.step + 1] if 0 <= last.step < len(STEPS) - 1 else ""
    if not last.done:
        slow = (
            f"a small guest did not end within {_TRIAL_SECONDS:.0f} s (at: {failed or 'its end'})"
        )
        return _unusable("no-answer", _PREFIX + slow, _NESTED, failed)
    if last.failure == MSR_FAILURE:
        return _unusable("guest-failed", last.failure, _NESTED)
    if last.failure:
        where = f" at {failed}" if failed else ""
        return _unusable("guest-failed", f"{_PREFIX}{last.failure}{where}", _NESTED, failed)
    return Verdict(usable=True, reason="KVM runs a guest")


_PREFIX = "KVM does not run a guest here: "
_NESTED = "this is a limit of the (outer) hypervisor: ask for real nested virtualization"
_REPORT = "please report it, with the output of wirt doctor --json"


def _unusable(fault: Fault, reason: str, hint: str, step: str = "") -> Verdict:
    return Verdict(usable=False, reason=reason, hint=hint, fault=fault, step=step)


def cached_verdict(cache_dir: str) -> Verdict:
    """Return the verdict, tried once for each boot, kernel, /dev/kvm and user."""
    path = os.path.join(cache_dir, "kvm.json")
    host = _host()
    known = cache.read(path, _Cached)
    if known is not None and (known.format, known.host) == (_FORMAT, host) and _holds(known):
        return known.verdict
    fresh = verdict()
    expires = time.time() + _PATIENCE if fresh.fault == "no-answer" else 0.0
    cache.write(path, _Cached(_FORMAT, host, fresh, expires))
    return fresh


def _holds(known: _Cached) -> bool:
    return known.expires == 0 or 0 <= known.expires - time.time() <= _PATIENCE


def _host() -> str:
    """Everything that can change the verdict, as one string."""
    boot = read_line("/proc/sys/kernel/random/boot_id")
    try:
        info = os.stat(DEVICE)
        device = f"{info.st_ino} {info.st_mode:o} {info.st_uid} {info.st_gid} {info.st_ctime_ns}"
    except OSError:
        device = "none"
    present = os.listdir("/sys/module") if os.path.isdir("/sys/module") else []
    modules = ",".join(sorted(name for name in present if name.startswith("kvm")))
    who = f"{os.geteuid()} {sorted(os.getgroups())}"
    return f"{boot} {os.uname().release} {device} {modules} {who}"
