"""One QEMU for tests of guests: a copy-on-write disk, the agent, and a serial log."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from wirt.catalog.image import TCG_ARGUMENTS, StoredImage
from wirt.errors import PeerClosed
from wirt.host.process import spawn
from wirt.protocols.qga.client import AgentClient

OVMF = Path("/usr/share/OVMF")
BOOT_TIMEOUT = 900
_DISKS = {
    "virtio": ["-device", "virtio-blk-pci,drive=disk"],
    "scsi": ["-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=disk"],
    "sata": ["-device", "ide-hd,drive=disk"],
}


def kernel_arguments(image: StoredImage, *more: str) -> list[str]:
    line = " ".join([TCG_ARGUMENTS, image.record.command_line, *more])
    return ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", line]


def uefi_arguments(directory: Path) -> list[str]:
    shutil.copy(OVMF / "OVMF_VARS_4M.fd", directory / "vars.fd")
    code = OVMF / "OVMF_CODE_4M.fd"
    return [
        "-drive", f"if=pflash,format=raw,readonly=on,file={code}",
        "-drive", f"if=pflash,format=raw,file={directory / 'vars.fd'}",
    ]  # fmt: skip


@contextlib.contextmanager
def boot(
    directory: Path,
    disk: Path,
    *arguments: str,
    size: str = "",
    bus: str = "virtio",
    disk_format: str = "raw",
) -> Iterator[AgentClient]:
    """Start QEMU on an overlay of the image ``disk``; yield the agent when it answers.

    ``directory`` gets the overlay, the sockets and ``serial.log``.
    """
    overlay = directory / "overlay.qcow2"
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(disk), "-F", disk_format]
    subprocess.run([*create, str(overlay), *([size] if size else [])], check=True, timeout=60)
    process = spawn(
        [
            "qemu-system-x86_64",
            *("-M", "q35", "-accel", "tcg,tb-size=128", "-cpu", "qemu64,-svm", "-m", "768M"),
            *("-nodefaults", "-no-user-config", "-display", "none"),
            *("-blockdev", f"driver=qcow2,node-name=disk,file.driver=file,file.filename={overlay}"),
            *_DISKS[bus],
            *("-netdev", "user,id=net"),  # restrict=on offers no name server
            *("-device", "virtio-net-pci,netdev=net,romfile=,mac=52:54:00:12:34:56"),
            *("-device", "virtio-serial-pci", "-device", "vmgenid,guid=auto"),
            *("-chardev", f"socket,id=agent,path={directory / 'agent'},server=on,wait=off"),
            *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
            *("-serial", f"file:{directory / 'serial.log'}"),
            *arguments,
        ]
    )
    try:
        with _connected(directory / "agent", process) as agent:
            yield agent
    finally:
        process.kill()
        process.wait()


def _connected(path: Path, process: subprocess.Popen[bytes]) -> AgentClient:
    """Connect when QEMU listens: its socket has a name a moment before."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(PeerClosed):
            return AgentClient.connect(path, timeout=BOOT_TIMEOUT)
        time.sleep(0.02)
    raise RuntimeError(f"QEMU did not start: {process.returncode}")


def sh(agent: AgentClient, script: str) -> str:
    """Run ``script`` in the guest and return its output; it must succeed."""
    done = agent.exec("/bin/sh", ["-c", script], timeout=BOOT_TIMEOUT)
    output = done.out_data.decode(errors="replace")
    assert done.exitcode == 0, output + done.err_data.decode(errors="replace")
    return output


def await_start(agent: AgentClient) -> str:
    """Wait for systemd and for the network; return systemd's state and the failed units.

    ``is-system-running --wait`` fails before the message bus is there.
    """
    script = """
    until grep -q nameserver /etc/resolv.conf; do sleep 0.3; done
    while :; do
        state=$(systemctl is-system-running)
        case $state in running | degraded) break ;; esac
        sleep 0.5
    done
    echo $state
    systemctl --failed --plain --no-legend
    """
    return sh(agent, script).strip()
