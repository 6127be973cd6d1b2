"""What the whole suite shares: the guest image, built once, and what to do without tools."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wirt.catalog.build import build_image
from wirt.catalog.catalog import Catalog
from wirt.catalog.recipe import Recipe
from wirt.errors import MissingDependency
from wirt.host.process import find_program

_PROGRAMS = {"needs_qemu": "qemu-system-x86_64", "needs_qemu_img": "qemu-img"}


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
    return Path(os.environ.get("WIRT_TEST_CACHE") or Path.home() / ".cache" / "wirt-tests")


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
