"""UEFI runs from the board's flash chips, and keeps its variables in the machine's own file."""

import os
import shutil
import socket
import time

import pytest

from tests.qemu import live
from tests.qemu.conftest import need
from wirt.spec import toml

pytestmark = pytest.mark.needs_qemu

OVMF = "/usr/share/OVMF"
SECONDS = 600.0


@pytest.mark.parametrize(
    ("firmware", "code", "variables"),
    [
        ("", "OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
        (", secure_boot = true", "OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd"),
    ],
)
def test_uefi_starts_and_writes_its_variables(firmware, code, variables, qemu, base):
    need(os.path.exists(f"{OVMF}/{code}"), "apt install ovmf")
    binary, capabilities = qemu
    own = base / "variables.fd"
    shutil.copy(f"{OVMF}/{variables}", own)
    before = own.read_bytes()
    machine = toml.load(
        f'name = "uefi"\nmemory = "256M"\nfirmware = {{ type = "uefi"{firmware} }}\n'
        'boot = { order = ["disk"] }\n[[disks]]\nimage = "empty"\nformat = "raw"\n'
    )
    (base / "empty").write_bytes(bytes(1 << 20))
    facts = {"firmware_code": f"{OVMF}/{code}", "uefi_variables": str(own)}
    with live.running(machine, capabilities, binary, base, **facts) as guest:
        said = listen(guest, base)
    assert b"BdsDxe" in said
    assert own.read_bytes() != before


def listen(guest, base):
    """Return what the firmware says until its boot manager (BdsDxe) has spoken."""
    said = b""
    deadline = time.monotonic() + SECONDS
    with socket.socket(socket.AF_UNIX) as console:
        console.connect(str(base / "serial0.sock"))
        guest.qmp.execute("cont")
        while b"BdsDxe" not in said and time.monotonic() < deadline:
            console.settimeout(max(0.1, deadline - time.monotonic()))
            heard = console.recv(4096)
            assert heard, "QEMU ended"
            said += heard
    return said
