from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from wirt.catalog.catalog import Catalog


def _load(name):
    """Import a file beside this one: test directories are no packages."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


web = _load("web")


@pytest.fixture
def catalog(tmp_path):
    return Catalog(tmp_path / "images")


@pytest.fixture
def site(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with web.serve() as site:
        yield site
