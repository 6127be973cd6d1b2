"""A guest that is up in three seconds: a kernel, busybox, and a shell on the serial port.

The kernel and the modules are those of the suite's guest image; its initrd brings busybox.
"""

from __future__ import annotations

import itertools
import random
import re
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from wirt.catalog.image import StoredImage
from wirt.catalog.initrd import Cpio
from wirt.store.layout import VmPaths

SECONDS = 300.0
MODULES = "/usr/lib/modules"
WANTED = ("virtio_net", "virtio_pci", "e1000", "8139cp", "ne2k-pci", "pcnet32", "e100", "tulip",
          "vmxnet3", "e1000e")  # fmt: skip
INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /sbin /usr/bin /usr/sbin /proc /sys /dev /tmp /etc
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read module; do insmod /m/$module; done < /m/order
ip link set lo up
stty -echo -F /dev/ttyS0
echo tiny-ready > /dev/ttyS0
export PS1=
# Not as process 1: an interactive shell ends when an orphan that it was given does.
setsid sh -c 'exec sh </dev/ttyS0 >/dev/ttyS0 2>&1'
"""
DHCP = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip address replace $ip/$mask dev $interface
[ -n "$router" ] && ip route replace default via $router
echo "search $domain" > /etc/resolv.conf
for server in $dns; do echo "nameserver $server" >> /etc/resolv.conf; done
"""


def build_initrd(image: StoredImage, path: Path) -> None:
    """Write the initrd: the image's own, with another init and network drivers on top."""
    archive = Cpio()
    archive.file("init", INIT.encode(), mode=0o755)
    archive.directory("m")
    archive.file("dhcp", DHCP.encode(), mode=0o755)
    modules = modules_of(image, WANTED)
    for name, content in modules.items():
        archive.file(f"m/{name}", content)
    archive.file("m/order", "".join(f"{name}\n" for name in modules).encode())
    with path.open("wb") as file:
        file.write(image.initrd.read_bytes())
        file.write(archive.finish())


def modules_of(image: StoredImage, wanted: Iterable[str]) -> dict[str, bytes]:
    """Return the files of modules of the image's kernel, each behind those that it needs."""
    disk = str(image.disk)
    version = _debugfs(disk, f"ls -p {MODULES}").decode().split("/6.", 1)[1].split("/")[0]
    base = f"{MODULES}/6.{version}"
    table = dict(
        line.split(":", 1)
        for line in _debugfs(disk, f"cat {base}/modules.dep").decode().splitlines()
    )
    paths = dict.fromkeys(path for name in wanted for path in _with_needs(name, table))
    return {Path(path).name: _debugfs(disk, f"cat {base}/{path}") for path in paths}


def _with_needs(name: str, table: dict[str, str]) -> list[str]:
    """Return the file of a module behind those that it needs."""
    found = [path for path in table if Path(path).name == f"{name}.ko"]
    return [*reversed(table[found[0]].split()), found[0]] if found else []


def _debugfs(disk: str, command: str) -> bytes:
    done = subprocess.run(
        ["debugfs", "-R", command, disk], check=True, capture_output=True, timeout=60
    )
    return done.stdout


def console(paths: VmPaths) -> str:
    """Return where the shell of a machine's guest is reached."""
    return paths.socket("serial0-view")


class Shell:
    """The shell of one tiny guest, over a socket of its serial port.

    ``booted``: it was up before, so that its console need not say that it is ready.
    """

    def __init__(self, path: str, *, booted: bool = False) -> None:
        # The console repeats what it said to others: no number is used twice.
        self._numbers = itertools.count(random.randrange(1 << 30))
        self._text = b""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(SECONDS)
        self._socket.connect(path)
        if not booted:
            self._read_until(rb"tiny-ready\r?\n")

    def __call__(self, command: str, *, check: bool = True, timeout: float = SECONDS) -> str:
        """Run a command and return what it printed."""
        number = next(self._numbers)
        self._socket.settimeout(SECONDS)
        self._socket.sendall(f"({command}) 2>&1; echo E{number}N:$?:\n".encode())
        output = self._read_until(rb"E%dN:(\d+):\r?\n" % number, timeout)
        text, _, rest = output.rpartition(f"E{number}N:")
        code = int(rest.split(":")[0])
        assert not check or code == 0, f"{command}: {code}\n{text}"
        return text.replace("\r", "")

    def type(self, line: bytes) -> None:
        """Type a line that keeps the shell busy: what it prints is for others to read."""
        self._socket.sendall(line)

    def _read_until(self, pattern: bytes, timeout: float = SECONDS) -> str:
        deadline = time.monotonic() + timeout
        while not (match := re.search(pattern, self._text)):
            self._socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                data = b""
            assert data, self._text[-2000:]
            self._text += data
        found, self._text = self._text[: match.end()], self._text[match.end() :]
        return found.decode(errors="replace")

    def close(self) -> None:
        self._socket.close()
