"""The plugin as a project uses it: pytest run on a small suite of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from wirt.store.machines import machine_names

pytestmark = [pytest.mark.needs_qemu, pytest.mark.needs_guest, pytest.mark.xdist_group("warm")]

SUITE = """
import time

def test_a_machine_of_its_own(wirt_machine):
    open("names", "a").write(wirt_machine.name + " ")
    wirt_machine.exec(["touch", "/mine"])

def test_another_one(wirt_machine):
    open("names", "a").write(wirt_machine.name)
    assert wirt_machine.exec(["ls", "/"]).text.split().count("mine") == 0

def test_that_fails(wirt_machine):
    wirt_machine.exec(["sh", "-c", "echo seen-on-console > /dev/console"])
    deadline = time.monotonic() + 120
    while b"seen-on-console" not in wirt_machine.console_log() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert False, "on purpose"
"""


def run(directory, home, *words):
    (directory / "pytest.ini").write_text(
        "[pytest]\nwirt_image = debian:12\nwirt_settings = memory=1G\n"
    )
    (directory / "test_guest.py").write_text(SUITE)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words, str(directory)],
        cwd=directory, env={**os.environ, "WIRT_HOME": home}, capture_output=True, text=True,
        timeout=1500, check=False,
    )  # fmt: skip


def test_each_test_has_a_machine_and_a_failed_one_shows_it(tmp_path, wirt_context):
    done = run(tmp_path, wirt_context.home.root)
    assert "2 passed" in done.stdout
    assert "1 failed" in done.stdout, done.stdout
    assert "wirt: debian:12 on tcg" in done.stdout or "on kvm" in done.stdout
    assert "seen-on-console" in done.stdout
    [picture] = (tmp_path / ".pytest_wirt").iterdir()
    assert picture.read_bytes()[:4] == b"\x89PNG"
    names = (tmp_path / "names").read_text().split()
    assert len(set(names)) == 2
    assert not set(names) & set(machine_names(wirt_context.home))


def test_without_qemu_tests_are_skipped_with_the_reason(tmp_path, context):
    (tmp_path / "bin").mkdir()
    env = {**os.environ, "WIRT_HOME": context.home.root, "PATH": str(tmp_path / "bin")}
    (tmp_path / "test_guest.py").write_text("def test_x(wirt_machine): pass\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", str(tmp_path)],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert "1 skipped" in done.stdout, done.stdout
    assert "apt install" in done.stdout


def test_a_project_without_guests_pays_nothing(tmp_path):
    (tmp_path / "test_x.py").write_text(
        "import sys\ndef test_x(): assert 'wirt.vm.vm' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert "1 passed" in done.stdout, done.stdout
    assert "wirt:" not in done.stdout
