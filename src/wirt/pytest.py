"""Fixtures for pytest: a machine for each test, forked from a warm image.

::

    def test_nginx_starts(wirt_machine):
        wirt_machine.exec(["systemctl", "start", "nginx"])

The image is ``debian:12``, or what ``wirt_image`` in pytest's configuration says. The first
test boots it, once for all tests, workers (xdist) and later runs; see ``wirt template ls``.
When a test fails, the end of its machine's console and a picture of its screen are added to
the report. Where there is no QEMU, tests are skipped, and the reason says what to install.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

DEFAULT_IMAGE = "debian:12"
BOOT_SECONDS = 900.0
_CONSOLE_BYTES = 4000
_MACHINES = pytest.StashKey[list[Any]]()
"""The machines of a test, module or session, as ``Vm``."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare what can be configured."""
    parser.addini("wirt_image", "guest image of wirt_machine", default="")
    parser.addini("wirt_settings", "its settings: KEY=VALUE, one a line", type="linelist")


def pytest_report_header(config: pytest.Config) -> str:
    """Say what runs the guests, where the project says that it has some."""
    if not config.getini("wirt_image"):
        return ""
    from wirt.errors import WirtError
    from wirt.host.accel import choose_accelerator
    from wirt.store.layout import default_home

    try:
        chosen = choose_accelerator("auto", cache_dir=default_home().cache)
    except WirtError as error:
        return f"wirt: {error.message}"
    return f"wirt: {config.getini('wirt_image')} on {chosen.name} ({chosen.reason})"


@pytest.fixture(scope="session")
def wirt_context() -> Any:
    """Return the ``wirt.Context`` of the machines; override it to keep them in another home.

    The home may be that of several workers and of several runs at once.
    """
    from wirt.vm.context import Context

    return Context()


@pytest.fixture(scope="session")
def wirt_factory(request: pytest.FixtureRequest, wirt_context: Any) -> Callable[..., Any]:
    """Return a context manager that yields a machine: ``wirt_factory(image, memory="1G")``.

    Without an image it is the configured one. The machine is removed at the end.
    """
    config = request.config

    @contextlib.contextmanager
    def machine(image: str = "", *, owner: Any = None, **settings: Any) -> Iterator[Any]:
        with _machine(wirt_context, config, image, settings) as vm:
            if owner is not None:
                owner.stash.setdefault(_MACHINES, []).append(vm)
            yield vm

    return machine


@contextlib.contextmanager
def _machine(
    context: Any, config: pytest.Config, image: str, settings: dict[str, Any]
) -> Iterator[Any]:
    from wirt.errors import MissingDependency, NotFound
    from wirt.spec.assign import assign
    from wirt.vm.create import Wish
    from wirt.vm.oneshot import temporary
    from wirt.vm.source import resolve_or_build
    from wirt.vm.vm import Vm

    tree: dict[str, Any] = {}
    for line in config.getini("wirt_settings"):
        key, _, value = line.partition("=")
        assign(tree, key.strip(), value.strip())
    try:
        source = resolve_or_build(context, image or config.getini("wirt_image") or DEFAULT_IMAGE)
        made = temporary(context, source, Wish(settings=tree | settings), timeout=BOOT_SECONDS)
        name = made.__enter__().name
    except (MissingDependency, NotFound) as error:
        pytest.skip(f"{error.message}; {error.hint}" if error.hint else error.message)
    try:
        yield Vm(name, context)
    finally:
        made.__exit__(None, None, None)


@pytest.fixture
def wirt_machine(request: pytest.FixtureRequest, wirt_factory: Callable[..., Any]) -> Iterator[Any]:
    """Yield a running machine of this test alone, a ``wirt.Vm``."""
    with wirt_factory(owner=request.node) as vm:
        yield vm


@pytest.fixture(scope="module")
def wirt_module_machine(
    request: pytest.FixtureRequest, wirt_factory: Callable[..., Any]
) -> Iterator[Any]:
    """Yield a running machine that the tests of a module share."""
    with wirt_factory(owner=request.node) as vm:
        yield vm


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add console and screen of a failed test's machines to its report."""
    report = yield
    if call.when == "call" and report.failed:
        for node in item.listchain():
            for vm in node.stash.get(_MACHINES, []):
                _add_sections(report, item, vm)
    return report


def _add_sections(report: pytest.TestReport, item: pytest.Item, vm: Any) -> None:
    from wirt.errors import WirtError

    with contextlib.suppress(WirtError, OSError):
        console = vm.console_log()[-_CONSOLE_BYTES:].decode(errors="replace")
        report.sections.append((f"console of {vm.name}", console))
    with contextlib.suppress(WirtError, OSError):
        path = os.path.join(_pictures(item), f"{vm.name}.png")
        vm.screenshot(path)
        report.sections.append((f"screen of {vm.name}", path))


def _pictures(item: pytest.Item) -> str:
    """Return a directory for pictures, beside the temporary files of this run."""
    base = item.config.rootpath / ".pytest_wirt"
    base.mkdir(exist_ok=True)
    return os.fspath(base)
