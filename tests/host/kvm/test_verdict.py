"""The verdict: what the trial's output means, and how long it is believed."""

import errno
import json
import os

import pytest

from wirt.errors import MissingDependency
from wirt.host import accel
from wirt.host.cpu import Cpu
from wirt.host.kvm import verdict as module
from wirt.host.kvm.trial import MSR_FAILURE, STEPS
from wirt.host.kvm.verdict import (
    Verdict,
    cached_verdict,
    closed_device,
    judge,
    permission_hint,
    verdict,
)


def output(*answers):
    return b"".join(
        json.dumps({"step": step, "failure": failure, "done": done}).encode() + b"\n"
        for step, failure, done in answers
    )


LAST = len(STEPS) - 1
STEPPED = [(step, "", False) for step in range(1, LAST + 1)]


def test_a_guest_that_ran_to_its_end_means_usable():
    assert judge(output(*STEPPED, (LAST, "", True))) == Verdict(
        usable=True, reason="KVM runs a guest"
    )


def test_the_step_that_failed_is_named():
    found = judge(output(*STEPPED[:2], (2, "KVM internal error: emulation failure", True)))
    assert (found.usable, found.fault, found.step) == (False, "guest-failed", "cmpxchg16b")
    assert "emulation failure at cmpxchg16b" in found.reason
    assert found.hint


@pytest.mark.parametrize(("answers", "step"), [(0, STEPS[1]), (4, STEPS[5]), (LAST - 1, STEPS[-1])])
def test_a_guest_that_did_not_end_says_where_it_was(answers, step):
    found = judge(output(*STEPPED[:answers]) + b'{"ste')
    assert (found.usable, found.fault, found.step) == (False, "no-answer", step)


@pytest.mark.parametrize("garbage", [b"\0\xff\n", b"[]\n", b'{"step":"x"}\n', b'{"step":9e99}\n'])
def test_nonsense_is_no_verdict_for_kvm(garbage):
    assert judge(garbage).fault == "no-answer"


def test_a_step_out_of_range_does_not_confuse():
    assert judge(output((-7, "why", True))).reason.endswith("why")
    assert judge(output((99, "why", True))).reason.endswith("why")


def test_an_msr_that_is_offered_and_lost_makes_kvm_unusable():
    assert "-cpu host" in judge(output(*STEPPED, (LAST, MSR_FAILURE, True))).reason


BARE = Cpu("GenuineIntel", "", frozenset({"vmx"}))
AMD = Cpu("AuthenticAMD", "", frozenset({"svm"}))
GUEST = Cpu("AuthenticAMD", "", frozenset({"hypervisor"}))
OFF = Cpu("GenuineIntel", "", frozenset())


@pytest.mark.parametrize(
    ("number", "cpu", "fault", "hint"),
    [
        (errno.ENOENT, BARE, "no-device", "modprobe kvm_intel"),
        (errno.ENOENT, AMD, "no-device", "modprobe kvm_amd"),
        (errno.ENOENT, GUEST, "no-device", "nested"),
        (errno.ENOENT, OFF, "no-device", "firmware"),
        (errno.ENODEV, BARE, "no-device", "modprobe kvm_intel"),
        (errno.EACCES, BARE, "no-permission", "kvm"),
        (errno.EPERM, BARE, "no-permission", "--device /dev/kvm"),
    ],
)
def test_a_closed_device_is_explained_with_its_cure(number, cpu, fault, hint):
    found = closed_device(OSError(number, os.strerror(number)), cpu)
    assert (found.usable, found.fault) == (False, fault)
    assert hint in found.hint


@pytest.mark.needs_root
def test_the_cure_for_a_closed_device_depends_on_its_group(tmp_path):
    device = tmp_path / "kvm"
    device.touch()
    os.chown(device, 0, 54321)
    device.chmod(0o660)
    assert permission_hint(str(device)).startswith("usermod -aG 54321 $USER")
    device.chmod(0o600)
    assert "chgrp kvm" in permission_hint(str(device))


def test_the_deadline_is_kept_by_the_kernel(monkeypatch):
    """The trial's process is ended from outside, whatever it is doing."""
    monkeypatch.setattr(module, "_TRIAL_SECONDS", 0.000001)
    assert module._try().fault == "no-answer"


def test_the_verdict_here_has_a_reason_and_a_hint_if_unusable():
    found = verdict()
    assert found.reason
    assert found.usable or (found.hint and found.fault)


@pytest.fixture
def counted(monkeypatch):
    """Count the trials, and let each say what the list holds."""
    answers = [Verdict(usable=False, reason="first", fault="guest-failed")] * 9
    taken = []

    def trial():
        taken.append(answers[0])
        return answers[0]

    monkeypatch.setattr(module, "verdict", trial)
    return answers, taken


def test_a_verdict_is_tried_once(tmp_path, counted):
    assert cached_verdict(str(tmp_path)) == cached_verdict(str(tmp_path))
    assert len(counted[1]) == 1
    assert os.listdir(tmp_path) == ["kvm.json"]


def test_a_changed_host_is_tried_again(tmp_path, counted, monkeypatch):
    cached_verdict(str(tmp_path))
    monkeypatch.setattr(module, "_host", lambda: "another boot")
    cached_verdict(str(tmp_path))
    assert len(counted[1]) == 2


@pytest.mark.parametrize("damage", [b"", b"{", b'{"format":2}', b"\xff" * 100, b"0" * 100000])
def test_a_damaged_cache_is_rebuilt(tmp_path, counted, damage):
    (tmp_path / "kvm.json").write_bytes(damage)
    assert cached_verdict(str(tmp_path)).reason == "first"
    cached_verdict(str(tmp_path))
    assert len(counted[1]) == 1


def test_a_missing_answer_is_believed_for_a_while_only(tmp_path, counted, monkeypatch):
    counted[0][0] = Verdict(usable=False, reason="busy", fault="no-answer")
    cached_verdict(str(tmp_path))
    cached_verdict(str(tmp_path))
    assert len(counted[1]) == 1
    later = module.time.time() + 3600
    monkeypatch.setattr(module.time, "time", lambda: later)
    cached_verdict(str(tmp_path))
    assert len(counted[1]) == 2


def test_a_cache_that_cannot_be_written_is_done_without(counted):
    assert cached_verdict("/proc/nonexistent").reason == "first"


UNUSABLE = Verdict(usable=False, reason="no luck", hint="buy a computer")


def test_auto_takes_kvm_where_it_runs_a_guest_and_else_says_why_not(monkeypatch):
    found = [UNUSABLE, Verdict(usable=True, reason="KVM runs a guest")]
    monkeypatch.setattr(accel, "cached_verdict", lambda _: found.pop())
    assert accel.choose_accelerator("auto", cache_dir="").name == "kvm"
    assert accel.choose_accelerator("auto", cache_dir="") == accel.Accelerator("tcg", "no luck")


def test_insisting_on_kvm_in_vain_is_an_error_with_the_reason(monkeypatch):
    monkeypatch.setattr(accel, "cached_verdict", lambda _: UNUSABLE)
    with pytest.raises(MissingDependency, match="no luck") as caught:
        accel.choose_accelerator("kvm", cache_dir="")
    assert "buy a computer" in caught.value.hint


def test_tcg_needs_no_verdict(monkeypatch):
    monkeypatch.setattr(accel, "cached_verdict", None)
    assert accel.choose_accelerator("tcg", cache_dir="").name == "tcg"


def test_a_qemu_without_kvm_runs_in_software_whatever_the_host_can(monkeypatch):
    monkeypatch.setattr(accel, "cached_verdict", None)
    chosen = accel.choose_accelerator("auto", cache_dir="", built_in={"tcg", "qtest"})
    assert chosen.name == "tcg"
    assert "no KVM" in chosen.reason
    with pytest.raises(MissingDependency, match="no KVM"):
        accel.choose_accelerator("kvm", cache_dir="", built_in={"tcg"})
