"""Snapshots with the state of a running VM, which only QEMU makes."""

import subprocess

import pytest

from tests.image.qcow2.support import create, open_image, qemu_img

pytestmark = [pytest.mark.needs_qemu, pytest.mark.needs_qemu_img]
MIB = 1 << 20


def monitor(path, *commands):
    """Run a machine without an operating system and give it monitor commands."""
    done = subprocess.run(
        [
            "qemu-system-x86_64",
            *("-nodefaults", "-display", "none", "-machine", "q35,accel=tcg", "-m", "64"),
            *("-drive", f"file={path},if=virtio,format=qcow2", "-monitor", "stdio", "-S"),
        ],
        input="\n".join([*commands, "quit", ""]),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stdout, done.stdout
    return done.stdout


@pytest.mark.parametrize("cluster", ["4096", "65536"])
def test_the_vm_state_is_shown_and_survives_our_operations(tmp_path, cluster):
    path = create(tmp_path / "a.qcow2", 4 * MIB, cluster_size=cluster)
    with open_image(path, writable=True) as image:
        image.pwrite(0, b"before" * 1000)
    monitor(path, "savevm live")
    with open_image(path, writable=True) as image:
        live = image.snapshots()[0]
        assert live.name == "live"
        assert live.vm_state_size > 100_000
        image.pwrite(0, b"after!" * 1000)
        image.snapshot_create("ours")
        image.snapshot_apply("live")
        assert image.pread(0, 6000) == b"before" * 1000
        image.snapshot_apply("ours")
        image.snapshot_delete("ours")
        result = image.check()
        assert (result.corruptions, result.leaks) == (0, 0), result.messages
    qemu_img("check", path)
    assert "live" in monitor(path, "loadvm live", "info snapshots")
    with open_image(path, writable=True) as image:
        assert image.pread(0, 6000) == b"before" * 1000
        image.snapshot_delete("live")
        result = image.check()
        assert (result.corruptions, result.leaks) == (0, 0), result.messages
    qemu_img("check", path)
