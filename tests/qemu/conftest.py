"""The QEMU under test: the installed one, or the one that WIRT_TEST_QEMU names."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from wirt.host.qemu_probe import probe

BINARY = os.environ.get("WIRT_TEST_QEMU", "qemu-system-x86_64")


def need(condition: bool, what: str) -> None:
    if condition:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def qemu():
    """The binary and what it can do."""
    for program in (BINARY, "qemu-img"):
        need(shutil.which(program) is not None, f"{program} is not installed")
    with tempfile.TemporaryDirectory() as cache:
        return BINARY, probe(BINARY, cache)


@pytest.fixture
def base():
    """A directory whose sockets have short paths."""
    path = Path(tempfile.mkdtemp(prefix="wirt-q"))
    yield path
    shutil.rmtree(path)
