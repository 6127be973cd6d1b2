"""The verdict on KVM: is it there, may we use it, and does it really run a guest?"""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec

from wirt.host.kvm.trial import STEPS
from wirt.host.process import mortal, spawn

DEVICE = "/dev/kvm"
_TRIAL_SECONDS = 5.0
_MAX_ANSWER = 4096
_FORMAT = 1


class Verdict(msgspec.Struct, frozen=True):
    """Whether KVM can be used; if not, why and what helps."""

    usable: bool
    reason: str
    hint: str = ""


class _Cached(msgspec.Struct, frozen=True):
    format: int
    host: str
    verdict: Verdict


class _Answer(msgspec.Struct, frozen=True):
    step: int
    failure: str


def verdict() -> Verdict:
    """Look, and run a small guest for at most five seconds."""
    if not os.path.exists(DEVICE):
        return Verdict(
            usable=False,
            reason=f"there is no {DEVICE}",
            hint="enable virtualization in the firmware (Intel VT-x, AMD-V), or nested "
            "virtualization on the outer host; then: modprobe kvm_intel || modprobe kvm_amd",
        )
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return Verdict(
            usable=False,
            reason=f"you may not open {DEVICE}",
            hint="usermod -aG kvm $USER, then log in again",
        )
    return _try()


def _try() -> Verdict:
    script = os.path.join(os.path.dirname(__file__), "trial.py")
    process = spawn(
        mortal([sys.executable, "-I", "-S", script]),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        out, _ = process.communicate(timeout=_TRIAL_SECONDS)
    except subprocess.TimeoutExpired:
        return _unusable(f"a guest of 200 bytes did not end within {_TRIAL_SECONDS:.0f} s")
    finally:
        process.kill()
        process.communicate()
    try:
        answer = msgspec.json.decode(out[:_MAX_ANSWER], type=_Answer)
    except msgspec.MsgspecError:
        return _unusable(f"the trial of KVM ended with {process.returncode}")
    if answer.failure:
        after = STEPS[answer.step] if answer.step < len(STEPS) else "?"
        failed = STEPS[answer.step + 1] if answer.step + 1 < len(STEPS) else "the end"
        return _unusable(f"{answer.failure} at {failed} (after {after})")
    return Verdict(usable=True, reason="KVM runs a guest")


def _unusable(reason: str) -> Verdict:
    return Verdict(
        usable=False,
        reason=f"KVM does not run a guest here: {reason}",
        hint="this is a limit of the (outer) hypervisor: ask for real nested virtualization",
    )


def cached_verdict(cache_dir: str) -> Verdict:
    """Return the verdict, tried once for each boot, kernel and /dev/kvm."""
    path = os.path.join(cache_dir, "kvm.json")
    host = _host()
    try:
        with open(path, "rb") as file:
            known = msgspec.json.decode(file.read(_MAX_ANSWER), type=_Cached)
        if known.format == _FORMAT and known.host == host:
            return known.verdict
    except (OSError, msgspec.MsgspecError):
        pass  # absent or damaged: it is a cache
    fresh = verdict()
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(msgspec.json.encode(_Cached(_FORMAT, host, fresh)))
        os.rename(temporary, path)
    except OSError:
        return fresh  # a cache that cannot be written costs time only
    return fresh


def _host() -> str:
    """Everything that can change the verdict, as one string."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    try:
        info = os.stat(DEVICE)
        device = f"{info.st_ino} {info.st_mode:o} {info.st_uid} {info.st_gid} {info.st_ctime_ns}"
    except OSError:
        device = "none"
    who = f"{os.geteuid()} {sorted(os.getgroups())}"
    return f"{boot} {os.uname().release} {device} {who}"
