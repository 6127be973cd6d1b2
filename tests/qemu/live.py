"""Golden machines on a real QEMU: placeholders for their images, and a start that is undone."""

import os
import random
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from tests.qemu import machines
from wirt.protocols.qmp.client import QmpClient
from wirt.qapi.capabilities import Capabilities
from wirt.qemu.compile import arguments
from wirt.qemu.render import argv
from wirt.qemu.runtime import Runtime
from wirt.spec.disk import Disk
from wirt.spec.machine import Machine

NOT_HERE = {
    "given-sockets": "needs sockets that listen",
    "host-devices": "needs block devices of the host",
    "networks-of-the-host": "needs descriptors of the host",
    "samba": "needs samba",
    "serials-clients": "needs servers and clients",
    "tpm-given": "needs a connection to swtpm",
    "usb-host": "needs a USB device of the host",
    "vde": "needs a VDE switch",
    "window": "needs a screen",
}
SEABIOS = "/usr/share/seabios/bios-256k.bin"
SECONDS = 300.0
EXPECTED = re.compile(
    r"warning: TCG doesn't support requested feature"
    r"|warning: hub \d+ is not connected to host network"  # a card without a cable, as asked
    r"|^QEMU [\d.]+ monitor|^\(qemu\) "  # a monitor on the terminal was asked for
    r"|char device redirected to /dev/pts/"  # so is a pseudo terminal
)


@dataclass
class Live:
    """A QEMU that answered ``query-status``."""

    words: list[str]
    qmp: QmpClient
    status: str
    process: subprocess.Popen[bytes]
    errors: Path

    def messages(self) -> list[str]:
        """What QEMU printed and should not have."""
        lines = self.errors.read_text(errors="replace").splitlines()
        return [line for line in lines if not EXPECTED.search(line)]


@contextmanager
def started(name: str, capabilities: Capabilities, binary: str) -> Iterator[Live]:
    """Start a golden machine, stopped before its first instruction (``-S``)."""
    base = Path(tempfile.mkdtemp(prefix="wirt-q"))
    try:
        machine = machines.load(name)
        place = machines.Place(vm=str(base / "vm"), sockets=str(base))
        facts = machines.runtime(name, place)
        with placeholders(machine, facts, base) as runtime:
            made = argv(binary, arguments(machine, runtime, capabilities))
            with _swtpm(machine, base), answering(_on_loopback(made), runtime, base) as live:
                yield live
    finally:
        shutil.rmtree(base)


@contextmanager
def _swtpm(machine: Machine, base: Path) -> Iterator[None]:
    """What listens on the socket ``tpm`` for a machine that has one."""
    if machine.tpm.version == "none":
        yield
        return
    words = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={base}"]
    words += ["--ctrl", f"type=unixio,path={base}/tpm.sock"]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + SECONDS
        while not _listens(base / "tpm.sock"):
            assert time.monotonic() < deadline, "swtpm does not listen"
            time.sleep(0.01)
        yield
    finally:
        process.kill()
        process.wait()


def _listens(path: Path) -> bool:
    """A socket has its name a moment before it listens; to connect would take QEMU's place."""
    with open("/proc/net/unix", encoding="utf-8", errors="surrogateescape") as table:
        sockets = [line.split(maxsplit=7) for line in table]
    accepts = f"{1 << 16:08X}"
    return any(words[3] == accepts and words[7:] == [f"{path}\n"] for words in sockets)


@contextmanager
def running(
    machine: Machine, capabilities: Capabilities, binary: str, base: Path, **facts: Any
) -> Iterator[Live]:
    """Run a machine whose images lie in ``base``; it waits for ``cont``."""
    runtime = Runtime(
        accelerator="tcg",
        directory=str(base),
        socket=lambda name: f"{base}/{name}.sock",
        paused=True,
        **facts,
    )
    words = argv(binary, arguments(machine, runtime, capabilities))
    with answering(_on_loopback(words), runtime, base) as live:
        yield live


@contextmanager
def answering(words: list[str], runtime: Runtime, base: Path) -> Iterator[Live]:
    errors = base / "errors"
    fds = list(runtime.fd_paths.values())
    with errors.open("wb") as file:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, pass_fds=fds
        )
    try:
        with _connect(process, runtime.socket("qmp"), errors) as qmp:
            status: Any = qmp.execute("query-status", reply=dict)
            yield Live(words, qmp, status["status"], process, errors)
    finally:
        process.kill()
        process.wait()


def _connect(process: subprocess.Popen[bytes], path: str, errors: Path) -> QmpClient:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"QEMU ended with {process.returncode}: {errors.read_text()}")
        try:
            return QmpClient.connect(path, timeout=SECONDS)
        except Exception:  # noqa: BLE001 - not there yet, or gone: the loop finds out which
            time.sleep(0.01)
    raise AssertionError("QEMU did not listen")


def _on_loopback(words: list[str]) -> list[str]:
    """Move every listener to a loopback address of this test's own."""
    own = "127." + ".".join(str(random.randrange(1, 255)) for _ in range(3))
    moved = [re.sub(r"127\.0\.0\.\d", own, word) for word in words]
    return [word.replace('"tcp::', f'"tcp:{own}:') for word in moved]


@contextmanager
def placeholders(machine: Machine, runtime: Runtime, base: Path) -> Iterator[Runtime]:
    root = Path(runtime.directory)
    for folder in ("disks", "log", "sub", "kernel", "tftp", "boot, files", "template"):
        (root / folder).mkdir(parents=True)
    for disk in machine.disks:
        if disk.image:
            _image(root / disk.image.lstrip("/"), disk)
    for file in (machine.boot.kernel, machine.boot.initrd):
        if file:
            (root / file).write_bytes(bytes(4096))
    if machine.boot.kernel:
        (root / machine.boot.kernel).write_bytes(_kernel())
    if machine.firmware.code:
        shutil.copy(SEABIOS, root / machine.firmware.code)
    if machine.firmware.type == "uefi":
        shutil.copy("/usr/share/OVMF/OVMF_VARS_4M.fd", runtime.uefi_variables)
    yield from _with_facts(machine, runtime, base, root)


def _with_facts(machine: Machine, runtime: Runtime, base: Path, root: Path) -> Iterator[Runtime]:
    fds = {}
    for image in runtime.fd_paths:
        disk = next(disk for disk in machine.disks if disk.image == image)
        read_only = disk.media == "cdrom" or disk.read_only or disk.discard_writes
        flags = os.O_RDONLY if read_only else os.O_RDWR
        fds[image] = os.open(root / image.lstrip("/"), flags)
    overlays = {}
    for index in runtime.overlays:
        overlays[index] = str(base / f"overlay{index}.qcow2")
        _qemu_img("create", "-q", "-f", "qcow2", overlays[index], "4M")
    memory = runtime.memory_file and str(base / "memory")
    if memory:
        with open(memory, "wb") as file:
            file.truncate(machine.memory)
    try:
        yield replace(
            runtime,
            accelerator="tcg",
            paused=True,
            fd_paths=fds,
            host_devices=(),
            cd_drives=(),
            overlays=overlays,
            memory_file=memory,
        )
    finally:
        for fd in fds.values():
            os.close(fd)


def _image(path: Path, disk: Disk) -> None:
    size = {"floppy": 1440 << 10, "pflash": 64 << 10}.get(disk.bus, 4 << 20)
    if path.name == "firmware.fd":
        shutil.copy(SEABIOS, path)
    elif disk.format == "raw":
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(size)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        _qemu_img("create", "-q", "-f", disk.format, str(path), str(size))


def _qemu_img(*words: str) -> None:
    subprocess.run(["qemu-img", *words], check=True)


def _kernel() -> bytes:
    """Enough of a bzImage for QEMU to load it: boot protocol 2.2, one setup sector."""
    image = bytearray(64 << 10)
    image[0x1F1] = 1
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x202:0x206] = b"HdrS"
    image[0x206:0x208] = (0x0202).to_bytes(2, "little")
    image[0x211] = 1
    return bytes(image)
