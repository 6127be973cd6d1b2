"""Test material: disks that boot by themselves, as fast as a whole Debian can.

``make_rescue_disk`` copies a disk of ``diskimage`` and lets GRUB start its kernel with a shell
as the first process: firmware, boot loader, kernel, initrd, root file system and programs are
Debian's own, and nothing of wirt is in the guest.
"""

from __future__ import annotations

import itertools
import random
import re
import shutil
import socket
import tempfile
import time
from pathlib import Path
from types import ModuleType

from wirt.catalog import child

SECONDS = 300.0
MENU = """search --no-floppy --set=root --label {label}
linux /vmlinuz root=LABEL={label} rw console=ttyS0 no_timer_check quiet init=/bin/sh
initrd /initrd.img
boot
"""


def make_rescue_disk(path: Path, disk: Path, firmware: str, diskimage: ModuleType) -> Path:
    """Write a raw disk that boots by ``firmware`` to a shell on the first serial port."""
    menu = MENU.format(label=diskimage.ROOT_LABEL)
    work = Path(tempfile.mkdtemp(prefix=".disk-", dir=path.parent))
    try:
        copy = work / "disk"
        child.run(["cp", "--sparse=always", str(disk), str(copy)], what="cp")
        copy.chmod(0o644)
        if firmware == "bios":
            diskimage._install_bios(copy, work, menu)
        else:
            _replace_loader(copy, work, menu, diskimage)
        copy.rename(path)
    finally:
        shutil.rmtree(work)
    return path


def _replace_loader(disk: Path, work: Path, menu: str, diskimage: ModuleType) -> None:
    config, loader = work / "grub.cfg", work / "BOOTX64.EFI"
    config.write_text(menu)
    child.run(
        ["grub-mkimage", "-O", "x86_64-efi", "-o", str(loader), "-c", str(config),
         "-p", "/EFI/BOOT", *diskimage.MODULES],
        what="grub-mkimage",
    )  # fmt: skip
    place = f"{disk}@@{diskimage.ESP_START}"
    child.run(["mcopy", "-o", "-i", place, str(loader), "::/EFI/BOOT/BOOTX64.EFI"], what="mcopy")


class RescueShell:
    """The shell of a guest that boots by itself, over a socket of its serial port.

    It echoes what is typed, and what is typed before it is there is lost: so each command is
    repeated until it answers with a number that was not typed.
    """

    def __init__(self, path: str) -> None:
        self._numbers = itertools.count(random.randrange(1 << 30))
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)

    def await_prompt(self) -> None:
        """Return when the shell answers."""
        deadline = time.monotonic() + SECONDS
        while True:
            number = next(self._numbers)
            self._socket.sendall(f"\necho up-$(({number}+1))-up\n".encode())
            if self._read(rb"up-%d-up" % (number + 1), time.monotonic() + 2):
                return
            assert time.monotonic() < deadline, "no shell"

    def __call__(self, script: str) -> str:
        """Run a script and return what it printed; it must succeed."""
        number = next(self._numbers)
        line = f"echo begin-$(({number}+1)); ({script}); echo end-$(({number}+1)):$?:\n"
        self._socket.sendall(line.encode())
        end = self._read(rb"end-%d:(\d+):" % (number + 1), time.monotonic() + SECONDS)
        assert end is not None, f"no answer to {script}"
        printed, code = end
        text = printed.rpartition(f"begin-{number + 1}")[2].replace("\r", "")
        assert code == 0, f"{script}: {code}\n{text}"
        return text.rpartition(f"end-{number + 1}")[0].strip("\n")

    def _read(self, pattern: bytes, deadline: float) -> tuple[str, int] | None:
        text = b""
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                return None
            assert data, f"the end, after {text[-2000:]!r}"
            text += data
            if match := re.search(pattern, text):
                code = int(match[1]) if match.groups() else 0
                return text[: match.end()].decode(errors="replace"), code
        return None

    def type(self, line: str) -> None:
        """Type a line that keeps the shell busy: what it prints is for others to read."""
        self._socket.sendall(line.encode())

    def close(self) -> None:
        self._socket.close()
