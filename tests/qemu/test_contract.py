"""Every golden machine is one that a real QEMU makes, without a warning."""

import os
import shutil

import pytest

from tests.qemu import live, machines
from wirt.host.qemu_probe import probe

pytestmark = pytest.mark.needs_qemu

BINARY = os.environ.get("WIRT_TEST_QEMU", "qemu-system-x86_64")
NEEDS = (BINARY, "qemu-img")
FILES = (live.SEABIOS, "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd")


def need(condition: bool, what: str) -> None:
    if condition:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="module")
def capabilities(tmp_path_factory):
    for program in NEEDS:
        need(shutil.which(program) is not None, f"{program} is not installed")
    for file in FILES:
        need(os.path.exists(file), f"{file} is missing: apt install ovmf seabios")
    return probe(BINARY, str(tmp_path_factory.mktemp("probe")))


def skip_what_cannot_run(name, capabilities):
    if name in live.NOT_HERE:
        pytest.skip(live.NOT_HERE[name])
    version = tuple(map(int, machines.VERSIONS.get(name, "0.0").split(".")))
    if capabilities.version < version:
        pytest.skip(f"needs QEMU {machines.VERSIONS[name]}")


@pytest.mark.parametrize("name", machines.names())
def test_qemu_makes_the_machine_without_a_warning(name, capabilities):
    skip_what_cannot_run(name, capabilities)
    with live.started(name, capabilities, BINARY) as qemu:
        assert qemu.status in {"prelaunch", "inmigrate"}
        assert qemu.messages() == []
        made = qemu.qmp.execute("qom-list", {"path": "/machine/peripheral"}, reply=list[dict])
        wanted = {v["id"] for v in machines.json_values(qemu.words, "-device")}
        assert wanted <= {item["name"] for item in made}
