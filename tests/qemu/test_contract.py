"""Every golden machine is one that a real QEMU makes, without a warning."""

import os
import shutil

import pytest

from tests.qemu import live, machines
from tests.qemu.conftest import need

pytestmark = pytest.mark.needs_qemu

FILES = (live.SEABIOS, "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd")


def skip_what_cannot_run(name, version):
    if name in live.NOT_HERE:
        pytest.skip(live.NOT_HERE[name])
    wanted = machines.VERSIONS.get(name, "0.0")
    if version < tuple(map(int, wanted.split("."))):
        pytest.skip(f"needs QEMU {wanted}")


@pytest.mark.parametrize("name", machines.names())
def test_qemu_makes_the_machine_without_a_warning(name, qemu):
    binary, capabilities = qemu
    skip_what_cannot_run(name, capabilities.version)
    if machines.load(name).tpm.version != "none":
        need(shutil.which("swtpm") is not None, "apt install swtpm")
    for file in FILES:
        need(os.path.exists(file), f"{file} is missing: apt install ovmf seabios")
    with live.started(name, capabilities, binary) as guest:
        assert guest.status in {"prelaunch", "inmigrate"}
        assert guest.messages() == []
        made = guest.qmp.execute("qom-list", {"path": "/machine/peripheral"}, reply=list[dict])
        wanted = {v["id"] for v in machines.json_values(guest.words, "-device")}
        assert wanted <= {item["name"] for item in made}
