"""What the whole suite shares: the guest image, built once, and what to do without tools."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import hypothesis
import pytest

from wirt.catalog.build import build_image
from wirt.catalog.catalog import Catalog
from wirt.catalog.recipe import Recipe
from wirt.errors import MissingDependency
from wirt.host.process import find_program
from wirt.store.layout import home_at
from wirt.store.machines import machine_names
from wirt.vm.context import Context
from wirt.vm.remove import remove

# Who is started in the background ignores Ctrl-C, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Who is told to end cleans up first: machines would go on for ever.
signal.signal(signal.SIGTERM, signal.default_int_handler)

# A busy machine is slow: time is for the benchmarks to judge.
hypothesis.settings.register_profile(
    "wirt", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("wirt")

_PROGRAMS = {"needs_qemu": "qemu-system-x86_64", "needs_qemu_img": "qemu-img"}


_SUITE_HOME = "WIRT_SUITE_HOME"


def pytest_configure(config):
    """Name the home of the machines that tests fork: one for all workers of this run."""
    if not hasattr(config, "workerinput"):
        # A process id comes again, and a run that was killed leaves its home.
        name = f"wirt-suite-{os.getpid()}-{secrets.token_hex(3)}"
        os.environ[_SUITE_HOME] = os.path.join("/var/tmp", name)


def pytest_unconfigure(config):
    """When the last worker is gone, nothing of the home stays."""
    if hasattr(config, "workerinput") or not os.path.isdir(os.environ[_SUITE_HOME]):
        return
    home = home_at(os.environ[_SUITE_HOME])
    for name in machine_names(home):
        with contextlib.suppress(Exception):
            remove(Context(home), name, force=True)
    for directory in (home.memory, home.root):
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def wirt_context(guest_image):
    """The suite's guests are forks of one template, which the first that needs one makes."""
    home = home_at(os.environ[_SUITE_HOME])
    os.makedirs(home.root, mode=0o711, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.symlink(guest_image.directory.parent, home.images)
    return Context(home)


def pytest_runtest_setup(item):
    """Skip what this host has no tool for; where CI=true, let it fail instead."""
    wanted = [mark.args[0] for mark in item.iter_markers("needs_tool")]
    wanted += [program for name, program in _PROGRAMS.items() if item.get_closest_marker(name)]
    for program in wanted:
        try:
            find_program(program)
        except MissingDependency as error:
            _absent(f"{error.message} ({error.hint})")
    if item.get_closest_marker("needs_root") and os.geteuid() != 0:
        pytest.skip("needs root")


def _absent(reason):
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def _cache():
    """Where images are kept between runs: QEMU's own uid must be able to read them."""
    path = Path(os.environ.get("WIRT_TEST_CACHE") or f"/var/tmp/wirt-tests-{os.geteuid()}")
    path.mkdir(mode=0o711, parents=True, exist_ok=True)
    return path


def _built(recipe):
    """Return the image, built by the first process that asks for it; others wait for that."""
    try:
        return build_image(Catalog(_cache() / "images"), recipe)
    except MissingDependency as error:
        return _absent(f"{error.message} ({error.hint})")


@pytest.fixture(scope="session")
def guest_image():
    """The built Debian 12 guest (a StoredImage): shared, never to be written to."""
    return _built(Recipe(distribution="debian:12"))


@pytest.fixture(scope="session")
def guest_image_13():
    """The built Debian 13 guest."""
    return _built(Recipe(distribution="debian:13"))


@pytest.fixture(scope="session")
def guests():
    """Make the modules of tests/guests importable by name: ``diskimage`` and its like."""
    directory = Path(__file__).parent / "guests"
    for name in ("diskimage", "emulator", "hostpython", "rescue", "tiny", "tpm2"):
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, directory / f"{name}.py")
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
    return sys.modules


@pytest.fixture(scope="session")
def tiny_initrd(guest_image, guests):
    """An initrd for the guest image's kernel with which a guest is up in three seconds."""
    module = guests["tiny"]
    version = hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()[:12]
    path = _cache() / f"tiny-{version}-{guest_image.record.id[:12]}.initrd"
    with Catalog(_cache()).making("tiny", lambda: None):
        if not path.exists():
            _remove_older("tiny-*")
            draft = path.with_suffix(".new")
            module.build_initrd(guest_image, draft)
            draft.chmod(0o444)
            draft.rename(path)
    return path


def _remove_older(pattern):
    """Remove what other versions of the suite made, unless one of them may just be running."""
    for old in _cache().glob(pattern):
        if old.stat().st_mtime < time.time() - 86400:
            old.unlink()


def _disk(guests, firmware, **options):
    """Return a disk that boots by itself, made by the first process that asks for it."""
    module = guests["diskimage"]
    version = hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()[:12]
    path = _cache() / f"disk-{firmware}-{version}.raw"
    try:
        with Catalog(_cache()).making(f"disk-{firmware}", lambda: None):
            if not path.exists():
                _remove_older(f"disk-{firmware}-*")
                module.make_disk_image(path, firmware, **options)
                path.chmod(0o444)
    except MissingDependency as error:
        return _absent(f"{error.message} ({error.hint})")
    return path


@pytest.fixture(scope="session")
def uefi_disk(guests):
    """A raw Debian disk that boots by UEFI (GRUB on its ESP); never to be written to."""
    return _disk(guests, "uefi")


@pytest.fixture(scope="session")
def bios_disk(guests):
    """A raw Debian disk that boots by BIOS and has cloud-init; never to be written to."""
    return _disk(guests, "bios", cloud_init=True)


@pytest.fixture(scope="session")
def disk_directory():
    """A directory for large disks of this run, which QEMU's own uid can pass."""
    path = Path(tempfile.mkdtemp(prefix="wirt-disks-", dir="/var/tmp"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def shell_disk(guests, bios_disk, guest_image, disk_directory):
    """A raw disk that boots by BIOS, in seconds, to busybox on the serial port; to be read only."""
    path = disk_directory / "shell.raw"
    return guests["diskimage"].make_shell_disk(path, bios_disk, guest_image.initrd)


@pytest.fixture(scope="session")
def bios_rescue_disk(guests, bios_disk, disk_directory):
    """A raw Debian disk that boots by BIOS to a shell in place of systemd; to be read only."""
    path = disk_directory / "rescue-bios.raw"
    return guests["rescue"].make_rescue_disk(path, bios_disk, "bios", guests["diskimage"])


@pytest.fixture(scope="session")
def uefi_rescue_disk(guests, uefi_disk, disk_directory):
    """The same by UEFI."""
    path = disk_directory / "rescue-uefi.raw"
    return guests["rescue"].make_rescue_disk(path, uefi_disk, "uefi", guests["diskimage"])
