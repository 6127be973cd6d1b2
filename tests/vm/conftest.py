"""Homes for tests: machines live and die with them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from wirt.host.process import find_program
from wirt.host.process_id import ProcessId
from wirt.store.layout import home_at
from wirt.store.machines import machine_names
from wirt.vm import state
from wirt.vm.context import Context
from wirt.vm.remove import remove

# What a QEMU is doing is asserted, and on a busy host it may take its time to say so.
state.ASK_SECONDS = 120.0


class Cli:
    """The program ``wirt`` in a process of its own, on one home."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.env = {**os.environ, "WIRT_HOME": root}

    def start(self, *words: str, **options) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-m", "wirt", *words], env=self.env, **options)

    def __call__(self, *words: str, stdin: bytes = b"", timeout: float = 300):
        return subprocess.run(
            [sys.executable, "-m", "wirt", *words],
            env=self.env, input=stdin, capture_output=True, timeout=timeout, check=False,
        )  # fmt: skip


_LATE = """#!/bin/sh
case "$*" in --pdeathsig*{program}*)
    echo $$ > {directory}/late
    while read -r _ _ _ parent _ < /proc/$$/stat && [ "$parent" = "$PPID" ]; do sleep 0.02; done
esac
exec {setpriv} "$@"
"""


class Late:
    """A ``setpriv`` that lets ``program`` wait for its parent's end before it asks to end with it.

    It comes first on the PATH of the commands of ``cli``.
    """

    def __init__(self, cli: Cli, program: str) -> None:
        directory = Path(cli.root, "slow")
        directory.mkdir()
        directory.chmod(0o777)  # whatever uid the program has writes there
        self._kept = directory / "late"
        slow = directory / "setpriv"
        slow.write_text(
            _LATE.format(program=program, directory=directory, setpriv=find_program("setpriv"))
        )
        slow.chmod(0o755)
        cli.env["PATH"] = f"{directory}:{os.environ['PATH']}"

    def await_both(self) -> tuple[ProcessId, ProcessId]:
        """Return the program, which waits, and its parent."""
        deadline = time.monotonic() + 120
        while not (words := self._said()).endswith("\n"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        program = ProcessId.of(int(words))
        stat = Path(f"/proc/{program.pid}/stat").read_text()
        return program, ProcessId.of(int(stat.rpartition(")")[2].split()[1]))

    def _said(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return self._kept.read_text()
        return ""


@contextlib.contextmanager
def scratch_home(images: Path | None = None):
    """Yield a Context on a fresh home that QEMU's own uid can reach; nothing of it stays."""
    root = tempfile.mkdtemp(prefix="wirt-test-", dir="/var/tmp")
    os.chmod(root, 0o711)
    if images is not None:
        os.symlink(images, os.path.join(root, "images"))
    context = Context(home_at(root))
    try:
        yield context
    finally:
        for name in machine_names(context.home):
            with contextlib.suppress(Exception):
                remove(context, name, force=True)
        left = machine_names(context.home)
        shutil.rmtree(root, ignore_errors=True)
        assert left == []


@pytest.fixture
def context():
    """A home without images."""
    with scratch_home() as made:
        yield made


@pytest.fixture
def cli(context):
    return Cli(context.home.root)


@pytest.fixture(scope="module")
def guest_context(guest_image):
    """A home with the guest image of the suite, for the machines of one module."""
    with scratch_home(guest_image.directory.parent) as made:
        yield made


@pytest.fixture(scope="module")
def guest_cli(guest_context):
    return Cli(guest_context.home.root)
