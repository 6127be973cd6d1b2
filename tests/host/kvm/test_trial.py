"""The trial's guest: right on a CPU that can do everything, and QEMU agrees with the verdict."""

import os
import struct
import subprocess
import time

import pytest

from tests.host.kvm import stub
from wirt.host.kvm import trial
from wirt.host.kvm.verdict import verdict
from wirt.host.process import spawn

ALL = trial.Features(xcr0=3, popcnt=True, arch_capabilities=False)
LAST = len(trial.STEPS) - 1


def steps_in_qemu(tmp_path, features, *options):
    """Return what the payload wrote to the step and the fault port of a real QEMU."""
    (tmp_path / "bios").write_bytes(stub.bios())
    (tmp_path / "memory").write_bytes(stub.memory(features))
    logs = {name: tmp_path / name for name in ("steps", "faults")}
    line = [
        "qemu-system-x86_64", "-M", "pc", "-m", "16", "-nodefaults", "-display", "none",
        "-bios", str(tmp_path / "bios"), "-device", f"loader,file={tmp_path / 'memory'},addr=0",
        "-chardev", f"file,id=s,path={logs['steps']}",
        "-device", f"isa-debugcon,iobase={trial._STEP_PORT:#x},chardev=s",
        "-chardev", f"file,id=f,path={logs['faults']}",
        "-device", f"isa-debugcon,iobase={trial._FAULT_PORT:#x},chardev=f",
        "-no-reboot", *options,
    ]  # fmt: skip
    said = tmp_path / "said"
    with said.open("wb") as stderr:
        process = spawn(line, stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        _until_the_end(process, logs, said)
    finally:
        process.kill()
        process.wait()
    return [list(_read(log)) for log in logs.values()], said.read_text()


def _read(path):
    return path.read_bytes() if path.exists() else b""


def _until_the_end(process, logs, said):
    """Wait until the last step or a fault is logged, or QEMU gives up or ends."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if (
            LAST in _read(logs["steps"])
            or _read(logs["faults"])
            or b"internal error" in _read(said)
        ):
            return
        time.sleep(0.02)


@pytest.mark.needs_qemu
@pytest.mark.parametrize(
    "features", [ALL, ALL._replace(xcr0=0), ALL._replace(popcnt=False)], ids=str
)
def test_a_cpu_that_can_do_everything_runs_every_step(tmp_path, features):
    """TCG emulates the CPU to the letter of the manual: the machine code is right."""
    (steps, faults), _ = steps_in_qemu(tmp_path, features, "-accel", "tcg", "-cpu", "max")
    assert steps == list(range(1, LAST + 1))
    assert faults == []


@pytest.mark.needs_qemu
@pytest.mark.parametrize(
    ("cpu", "step"),
    [
        ("max,-cx16", "cmpxchg16b"),
        ("max,-popcnt", "popcnt"),
    ],
)
def test_a_cpu_that_lacks_an_instruction_fails_at_its_step(tmp_path, cpu, step):
    (steps, faults), _ = steps_in_qemu(tmp_path, ALL, "-accel", "tcg", "-cpu", cpu)
    assert steps[-1] == trial.STEPS.index(step) - 1
    assert faults == [6]  # invalid opcode


@pytest.fixture
def patient(monkeypatch):
    """On a busy host the trial may not be over in five seconds, and QEMU is waited for too."""
    monkeypatch.setattr("wirt.host.kvm.verdict._TRIAL_SECONDS", 60.0)


@pytest.mark.needs_qemu
def test_qemu_with_kvm_agrees_with_the_verdict(tmp_path, patient):
    """The same guest in QEMU gets as far as our trial says; -cpu host as wirt uses it."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("there is no /dev/kvm to compare with")
    found = verdict()
    (steps, _), words = steps_in_qemu(tmp_path, ALL, "-accel", "kvm", "-cpu", "host")
    assert found.usable == (LAST in steps), (found, steps, words)


@pytest.mark.needs_qemu
def test_qemu_with_another_cpu_model_fails_at_the_same_step(tmp_path, patient):
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("there is no /dev/kvm to compare with")
    found = verdict()
    if found.step not in trial.STEPS[2:]:
        pytest.skip(f"KVM fails at no step here: {found.reason}")
    (steps, _), words = steps_in_qemu(tmp_path, ALL, "-accel", "kvm", "-cpu", "kvm64,+cx16")
    assert max(steps, default=0) + 1 == trial.STEPS.index(found.step), words


def cpuid(*leaves):
    """Build struct kvm_cpuid2 from (function, index, eax, ebx, ecx, edx)."""
    packed = [struct.pack("<10I", f, i, 0, *registers, 0, 0, 0) for f, i, *registers in leaves]
    return struct.pack("<II", len(leaves), 0) + b"".join(packed)


def test_features_are_read_from_cpuid():
    full = cpuid(
        (1, 0, 0, 0, 1 << 26 | 1 << 23, 0), (7, 0, 0, 0, 0, 1 << 29), (13, 0, 0xE7, 0, 0, 0)
    )
    assert trial.Features.of(full) == trial.Features(7, popcnt=True, arch_capabilities=True)
    assert trial.Features.of(cpuid()) == trial.Features(0, popcnt=False, arch_capabilities=False)


def test_a_count_beyond_the_buffer_is_not_believed():
    lying = bytearray(cpuid((1, 0, 0, 0, 1 << 23, 0)))
    lying[0:4] = b"\xff\xff\xff\xff"
    assert trial.Features.of(lying).popcnt


def test_the_state_components_of_a_cpu_without_xsave_are_none():
    assert trial.Features.of(cpuid((1, 0, 0, 0, 0, 0), (13, 0, 7, 0, 0, 0))).xcr0 == 0
