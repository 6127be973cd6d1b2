"""The trial of KVM: its payload, and its verdict against what QEMU finds."""

from __future__ import annotations

import os
import struct

import pytest

from wirt.errors import MissingDependency
from wirt.host import accel
from wirt.host.accel import choose_accelerator
from wirt.host.kvm import trial, verdict
from wirt.host.kvm.verdict import Verdict, cached_verdict


def test_the_trial_ends_with_an_answer():
    found = verdict.verdict()
    assert found.usable or found.hint
    assert found.reason


def test_the_verdict_is_kept_for_this_boot_and_tried_again_after_the_next(tmp_path, monkeypatch):
    tries = []

    def counted():
        tries.append(1)
        return Verdict(usable=False, reason="counted")

    monkeypatch.setattr(verdict, "verdict", counted)
    assert cached_verdict(str(tmp_path)).reason == "counted"
    assert cached_verdict(str(tmp_path)).reason == "counted"
    assert len(tries) == 1
    monkeypatch.setattr(verdict, "_host", lambda: "another boot")
    cached_verdict(str(tmp_path))
    assert len(tries) == 2
    (tmp_path / "kvm.json").write_bytes(b"\xff")
    cached_verdict(str(tmp_path))
    assert len(tries) == 3


def test_a_guest_that_never_ends_is_a_verdict_too(monkeypatch, tmp_path):
    script = tmp_path / "trial.py"
    script.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(verdict, "_TRIAL_SECONDS", 0.3)
    monkeypatch.setattr(verdict, "__file__", str(tmp_path / "verdict.py"))
    found = verdict._try()
    assert not found.usable
    assert "did not end" in found.reason


def test_insisting_on_kvm_where_it_does_not_work_is_an_error(monkeypatch):
    bad = Verdict(usable=False, reason="there is no /dev/kvm", hint="modprobe kvm_intel")
    monkeypatch.setattr(accel, "cached_verdict", lambda _: bad)
    assert choose_accelerator("auto", cache_dir="").name == "tcg"
    assert choose_accelerator("auto", cache_dir="").reason == "there is no /dev/kvm"
    with pytest.raises(MissingDependency) as caught:
        choose_accelerator("kvm", cache_dir="")
    assert "modprobe" in caught.value.hint
    monkeypatch.setattr(
        accel, "cached_verdict", lambda _: Verdict(usable=True, reason="KVM runs a guest")
    )
    assert choose_accelerator("auto", cache_dir="").name == "kvm"
    assert choose_accelerator("tcg", cache_dir="").name == "tcg"


def test_the_payload_reports_each_step_in_order():
    code = trial.payload(7)
    steps = [code.index(bytes([0xB0, step, 0xE6, 0xE0])) for step in range(1, len(trial.STEPS))]
    assert steps == sorted(steps)
    assert len(code) < 0x800


def test_the_tables_map_the_first_two_megabytes_and_every_vector():
    memory = trial.memory_image(3)
    entry = struct.unpack_from("<Q", memory, 0x3000)[0]
    assert entry & 0x83 == 0x83
    for vector in range(32):
        low, selector, _, kind, middle, _, _ = struct.unpack_from(
            "<HHBBHII", memory, 0x5000 + 16 * vector
        )
        handler = low | middle << 16
        assert (selector, kind) == (8, 0x8E)
        assert memory[handler] in {0xB0, 0xBB}


@pytest.mark.skipif(not os.path.exists("/dev/kvm"), reason="there is no /dev/kvm")
@pytest.mark.needs_qemu
@pytest.mark.needs_guest
def test_qemu_with_kvm_agrees_with_the_verdict(guest_image):
    """An ordinary kernel under ``-accel kvm``: it prints, or QEMU stops it."""
    import subprocess

    line = [
        "qemu-system-x86_64", "-accel", "kvm", "-M", "q35", "-m", "512M", "-nodefaults",
        "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
        "-kernel", str(guest_image.kernel), "-append", "console=ttyS0 panic=-1 earlyprintk=ttyS0",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            line, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False
        )
        out = done.stdout
    except subprocess.TimeoutExpired as late:
        out = late.stdout or b""
    assert (b"Linux version" in out and b"Kernel panic" in out) == verdict.verdict().usable
