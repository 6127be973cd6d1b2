"""Processes and their names."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from wirt.errors import HostError, MissingDependency, Timeout
from wirt.host.process import ProcessId, find_program, mortal, run


def test_a_missing_program_names_the_package():
    with pytest.raises(MissingDependency, match="no-such-program"):
        run(["no-such-program"])


def test_system_programs_are_found_without_their_directories_in_path(monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert find_program("mke2fs").endswith("/mke2fs")


def test_a_failure_shows_the_last_words():
    with pytest.raises(HostError, match="sorry"):
        run(["sh", "-c", "echo sorry >&2; exit 3"])
    assert run(["sh", "-c", "exit 3"], check=False).returncode == 3


def test_a_program_beyond_its_time_is_ended():
    with pytest.raises(Timeout):
        run(["sleep", "60"], timeout=0.2)


def test_a_process_is_known_by_pid_and_start_time():
    with subprocess.Popen(["sleep", "60"]) as child:
        named = ProcessId.of(child.pid)
        assert named.alive()
        stranger = ProcessId(child.pid, named.start_ticks + 1)
        assert not stranger.alive()
        assert stranger.kill() is False
        assert stranger.wait(0.1) is True
        assert named.wait(0.1) is False
        assert named.signal(signal.SIGTERM) is True
        assert named.wait(10) is True
        assert not named.alive()


def test_a_name_with_spaces_and_parentheses_is_read(tmp_path):
    program = tmp_path / "a) S (b 1 2"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "60"]) as child:
        assert ProcessId.of(child.pid).alive()
        child.kill()


def test_a_mortal_program_ends_with_its_parent():
    code = (
        "import subprocess,sys,time\n"
        "from wirt.host.process import mortal\n"
        "child=subprocess.Popen(mortal(['sleep','60']))\n"
        "print(child.pid,flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    child = ProcessId.of(int(parent.stdout.readline()))
    time.sleep(0.3)
    assert child.alive()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert child.wait(10)
    assert mortal(["x"])[-1] == "x"
