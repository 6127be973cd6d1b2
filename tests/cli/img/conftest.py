"""``wirt img`` as its users type it, in this process, beside qemu-img as the oracle."""

import json
import os
import signal
import subprocess
import sys

import pytest

from wirt.cli.main import main

MIB = 1 << 20


class Shell:
    """Types commands in one directory; remembers nothing."""

    def __init__(self, place, capfd):
        self.place = place
        self._capfd = capfd

    def __call__(self, *words, code=0):
        """Run ``wirt img``; return what it printed."""
        self._capfd.readouterr()
        term = signal.getsignal(signal.SIGTERM)
        try:
            found = main(["img", *map(str, words)])
        finally:
            signal.signal(signal.SIGTERM, term)
        out, err = self._capfd.readouterr()
        assert found == code, f"{words}: {found}\n{out}{err}"
        return out or err

    def json(self, *words, code=0):
        return json.loads(self(*words, "--json", code=code))


@pytest.fixture
def wirt_img(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WIRT_HOME", str(tmp_path / "home"))
    return Shell(tmp_path, capfd)


@pytest.fixture
def spawn(tmp_path):
    """Start ``wirt img`` as a process of its own; it does not outlive the test."""
    started = []

    def start(*words, **options):
        command = [sys.executable, "-m", "wirt", "img", *map(str, words)]
        env = {**os.environ, "WIRT_HOME": str(tmp_path / "home")}
        process = subprocess.Popen(command, cwd=tmp_path, env=env, **options)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def qemu_img(*words, ok=(0,)):
    done = subprocess.run(
        ["qemu-img", *map(str, words)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode in ok, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout
