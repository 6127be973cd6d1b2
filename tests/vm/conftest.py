"""Homes for tests: machines live and die with them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from wirt.store.layout import home_at
from wirt.store.machines import machine_names
from wirt.vm.context import Context
from wirt.vm.remove import remove


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
