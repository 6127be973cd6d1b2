"""The built guests themselves, booted in QEMU."""

from __future__ import annotations

import os
import sys
import time

import pytest

pytestmark = [
    pytest.mark.needs_guest,
    pytest.mark.needs_qemu,
    pytest.mark.needs_qemu_img,
    pytest.mark.needs_tool("mmdebstrap"),
]


@pytest.fixture
def emulator(guests):
    return sys.modules["emulator"]


def test_debian_12_starts_whole_on_a_larger_scsi_disk(guest_image, tmp_path, emulator):
    arguments = emulator.kernel_arguments(guest_image)
    with emulator.boot(tmp_path, guest_image.disk, *arguments, size="12G", bus="scsi") as agent:
        assert emulator.await_start(agent) == "running"
        assert emulator.sh(agent, "findmnt -no SOURCE /").strip() == "/dev/sda"
        blocks = int(emulator.sh(agent, "df -B1 --output=size / | tail -1"))
        assert blocks > 11 << 30
        assert "10.0.2.15" in emulator.sh(agent, "ip -4 -brief address show scope global")
        assert "nameserver 10.0.2.3" in emulator.sh(agent, "cat /etc/resolv.conf")
        assert emulator.sh(agent, "ls /sys/bus/acpi/drivers | grep vmgenid")
        assert emulator.sh(agent, "sudo -u user sudo -n id -u").strip() == "0"
        assert emulator.sh(agent, "systemctl is-active ssh wirt-guest").split() == ["active"] * 2
        assert len(emulator.sh(agent, "cat /etc/machine-id").strip()) == 32
        assert _console_is_roots(emulator, agent, tmp_path)


def test_debian_13_starts(guest_image_13, tmp_path, emulator):
    arguments = emulator.kernel_arguments(guest_image_13)
    with emulator.boot(tmp_path, guest_image_13.disk, *arguments) as agent:
        assert emulator.await_start(agent) == "running"
        assert 'VERSION_ID="13"' in emulator.sh(agent, "cat /etc/os-release")
        assert "nameserver 10.0.2.3" in emulator.sh(agent, "cat /etc/resolv.conf")
        assert _console_is_roots(emulator, agent, tmp_path)


def _console_is_roots(emulator, agent, directory):
    """Wait for the prompt on the serial console that logs root in."""
    emulator.sh(agent, "timeout 600 sh -c 'until pgrep -t ttyS0 bash; do sleep 0.2; done'")
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if "root@guest" in (directory / "serial.log").read_text(errors="replace"):
            return True
        time.sleep(0.1)
    return False


def test_a_disk_with_grub_starts_by_uefi(uefi_disk, tmp_path, emulator):
    if not emulator.OVMF.is_dir():
        pytest.skip("ovmf is not installed (apt install ovmf)")
    with emulator.boot(tmp_path, uefi_disk, *emulator.uefi_arguments(tmp_path)) as agent:
        assert emulator.sh(agent, "ls -d /sys/firmware/efi").strip() == "/sys/firmware/efi"


@pytest.mark.skipif(
    os.environ.get("WIRT_TEST_LONG") != "1", reason="takes four minutes: set WIRT_TEST_LONG=1"
)
def test_a_disk_with_cloud_init_takes_the_seed(bios_disk, tmp_path, emulator):
    from wirt.catalog.seed import Seed, SeedFile, build_seed

    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGqVbYgk0pZ1hVQ4mZc1v1i0n5Fh0v3H7u1yJ0S4f3mP a@b"
    seed = tmp_path / "seed.img"
    seed.write_bytes(
        build_seed(
            Seed(
                instance_id="7f",
                hostname="web1",
                user="anna",
                ssh_keys=(key,),
                macs=("52:54:00:12:34:56",),
                files=(SeedFile(path="/etc/note", content=b"a\0b"),),
                commands=("touch /root/ran",),
            )
        )
    )
    attached = ["-blockdev", f"driver=file,read-only=on,node-name=seed,filename={seed}"]
    attached += ["-device", "virtio-blk-pci,drive=seed"]
    with emulator.boot(tmp_path, bios_disk, *attached) as agent:
        assert "done" in emulator.sh(agent, "cloud-init status --wait")
        assert emulator.sh(agent, "hostname").strip() == "web1"
        assert key in emulator.sh(agent, "cat /home/anna/.ssh/authorized_keys")
        assert emulator.sh(agent, "od -An -c /etc/note").split() == ["a", "\\0", "b"]
        emulator.sh(agent, "test -e /root/ran")
        assert emulator.sh(agent, "systemctl is-active wirt-guest").strip() == "active"
        assert "10.0.2.15" in emulator.sh(agent, "ip -4 -brief address show eth0")
