"""What the whole suite shares: the guest image, built once, and what to do without tools."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wirt.catalog.build import build_image
from wirt.catalog.catalog import Catalog
from wirt.catalog.recipe import Recipe
from wirt.errors import MissingDependency


def _cache():
    return Path(os.environ.get("WIRT_TEST_CACHE") or Path.home() / ".cache" / "wirt-tests")


def _built(recipe):
    """Return the image, built by the first process that asks for it; others wait for that."""
    try:
        return build_image(Catalog(_cache() / "images"), recipe)
    except MissingDependency as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"{error.message} ({error.hint})")


@pytest.fixture(scope="session")
def guest_image():
    """The built Debian 12 guest (a StoredImage): shared, never to be written to."""
    return _built(Recipe(distribution="debian:12"))


@pytest.fixture(scope="session")
def guest_image_13():
    """The built Debian 13 guest."""
    return _built(Recipe(distribution="debian:13"))
