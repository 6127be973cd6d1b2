"""libvirt as a peer: a libvirtd of the bench's own, in namespaces of its own, and what it costs.

Nothing of the host's libvirt is touched: its directories are covered by temporary ones, and it
has no network but a unix socket.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from wirt.catalog.image import StoredImage
from wirt.image.overlay import create_overlay

PROGRAMS = ("libvirtd", "virsh", "unshare")
_COVERED = ("/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt",
            "/run/libvirt")  # fmt: skip
_ACCOUNT = {
    "/etc/passwd": "libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin\n",
    "/etc/group": "libvirt-qemu:x:64055:\n",
}
_BOOT_SECONDS = 1200.0
_NAME = "wirt-bench"
_DAEMON = """
unix_sock_dir = "{root}/sock"
auth_unix_rw = "none"
auth_unix_ro = "none"
"""
_QEMU = """
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
user = "root"
group = "root"
dynamic_ownership = 0
"""
_DOMAIN = """
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>512</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel><initrd>{initrd}</initrd><cmdline>{cmdline}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='custom' match='exact'><model>qemu64</model></cpu>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='{disk}'/><target dev='vda' bus='virtio'/>
    </disk>
    <interface type='user'><model type='virtio'/></interface>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <memballoon model='none'/>
  </devices>
</domain>
"""


def absent() -> str:
    """Return why there is nothing to compare with, or ""."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"no {missing[0]}: apt install libvirt-daemon libvirt-clients"
    return "" if os.geteuid() == 0 else "libvirtd is only tried as root"


def restores(image: StoredImage, rounds: int) -> list[tuple[float, float]]:
    """Return the seconds of ``virsh restore``, and until the guest agent answers then."""
    where = tempfile.TemporaryDirectory(prefix="wirt-bench-", dir="/var/tmp")
    with where as root, _libvirtd(root) as virsh:
        return _restores(virsh, image, root, rounds)


class _Virsh:
    def __init__(self, root: str) -> None:
        self._line = ["virsh", "-q", "-c", f"qemu+unix:///system?socket={root}/sock/libvirt-sock"]

    def __call__(self, *words: str, check: bool = True) -> bool:
        done = subprocess.run(
            [*self._line, *words], check=False, capture_output=True, text=True, timeout=300
        )
        if check and done.returncode:
            raise RuntimeError(f"virsh {words[0]}: {done.stderr.strip()}")
        return done.returncode == 0

    def ping(self) -> bool:
        command = '{"execute":"guest-ping"}'
        return self("qemu-agent-command", _NAME, command, check=False)


@contextmanager
def _libvirtd(root: str) -> Iterator[_Virsh]:
    made = [path for path in _COVERED if not os.path.isdir(path)]
    lines = []
    for path in _COVERED:
        os.makedirs(path, exist_ok=True)
        ours = f"{root}{path}"
        os.makedirs(ours)
        lines.append(f"mount --bind {ours} {path}")
    for path, line in _ACCOUNT.items():  # libvirtd asks for it before it reads its settings
        Path(f"{root}{path}").write_text(Path(path).read_text() + line)
        lines.append(f"mount --bind {root}{path} {path}")
    Path(f"{root}/sock").mkdir()
    Path(f"{root}/etc/libvirt/libvirtd.conf").write_text(_DAEMON.format(root=root))
    Path(f"{root}/etc/libvirt/qemu.conf").write_text(_QEMU)
    lines.append(f"exec libvirtd -f /etc/libvirt/libvirtd.conf -p {root}/pid")
    argv = ["unshare", "--mount", "--net", "sh", "-ec", "\n".join(lines)]
    with open(f"{root}/log", "wb") as log, subprocess.Popen(argv, stdout=log, stderr=log) as daemon:
        virsh = _Virsh(root)
        try:
            _await(lambda: virsh("version", check=False), 120)
            yield virsh
        finally:
            virsh("destroy", _NAME, check=False)
            daemon.terminate()
    for path in made:
        with contextlib.suppress(OSError):
            os.rmdir(path)


def _restores(
    virsh: _Virsh, image: StoredImage, root: str, rounds: int
) -> list[tuple[float, float]]:
    disk, domain, saved = f"{root}/disk.qcow2", f"{root}/domain.xml", f"{root}/saved"
    create_overlay(
        disk, image.record.virtual_size, backing=os.fspath(image.disk),
        backing_format=image.record.format,
    )  # fmt: skip
    text = _DOMAIN.format(
        name=_NAME, kernel=image.kernel, initrd=image.initrd, disk=disk,
        cmdline=image.record.command_line,
    )  # fmt: skip
    Path(domain).write_text(text)
    virsh("create", domain)
    _await(virsh.ping, _BOOT_SECONDS)
    virsh("save", _NAME, saved)
    shutil.copyfile(disk, f"{disk}.then")
    return [_restore(virsh, disk, saved) for _ in range(rounds)]


def _restore(virsh: _Virsh, disk: str, saved: str) -> tuple[float, float]:
    shutil.copyfile(f"{disk}.then", disk)
    begin = time.perf_counter()
    virsh("restore", saved)
    running = time.perf_counter() - begin
    _await(virsh.ping, _BOOT_SECONDS)
    ping = time.perf_counter() - begin
    virsh("destroy", _NAME)
    return running, ping


def _await(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)
