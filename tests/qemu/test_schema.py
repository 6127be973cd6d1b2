"""Every JSON value of the golden machines is one that QEMU's own schema knows."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.qemu import machines
from tests.qemu.validate import Schema
from wirt.qemu.compile import arguments
from wirt.qemu.render import argv

OPTIONS = {"-blockdev": "blockdev-add", "-netdev": "netdev_add", "-object": "object-add"}
RECORDED = sorted(path.stem for path in (machines.HERE / "schema").glob("*.json"))


def lines(version: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the golden machines that this version can run, compiled for it."""
    capabilities = machines.recorded(version)
    for name in machines.names():
        if machines.VERSIONS.get(name, machines.DEFAULT_VERSION) in {"7.2", version}:
            made = arguments(machines.load(name), machines.runtime(name), capabilities)
            yield name, argv("qemu", made)


@pytest.mark.parametrize("version", RECORDED)
@pytest.mark.parametrize("option", OPTIONS)
def test_values_are_of_the_type_that_the_command_takes(version, option):
    schema = Schema(version)
    for name, words in lines(version):
        for value in machines.json_values(words, option):
            assert not schema.problems(OPTIONS[option], value), name


@pytest.mark.parametrize("version", RECORDED)
def test_devices_have_the_properties_that_they_are_given(version):
    schema = Schema(version)
    beside = {"driver", "id", "bus"}
    for name, words in lines(version):
        for value in machines.json_values(words, "-device"):
            unknown = set(value) - beside - set(schema.devices[value["driver"]])
            assert not unknown, (name, value["driver"])


@pytest.mark.parametrize("version", RECORDED)
def test_no_machine_type_is_deprecated(version):
    capabilities = machines.recorded(version)
    for alias in ("q35", "pc"):
        name = capabilities.resolve_machine(alias)
        found: Any = next(m for m in capabilities.machines if m.name == name)
        assert not found.deprecated


@pytest.mark.parametrize("version", RECORDED)
def test_the_check_itself_finds_what_is_wrong(version):
    schema = Schema(version)
    good = {"driver": "file", "node-name": "a", "filename": "/x", "read-only": True}
    assert not schema.problems("blockdev-add", good)
    assert schema.problems("blockdev-add", {**good, "read-only": "on"})
    assert schema.problems("blockdev-add", {**good, "nonsense": 1})
    assert schema.problems("blockdev-add", {"driver": "file", "node-name": "a"})
    assert schema.problems("blockdev-add", {**good, "driver": "no-such-driver"})
