"""Old lines on the QEMU that is installed: placeholders for what they name, started paused."""

import itertools
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.qemu.live import _kernel
from wirt.host.process_id import ProcessId
from wirt.protocols.qmp.client import QmpClient
from wirt.qapi.capabilities import Capabilities
from wirt.qemu.legacy.facts import Facts
from wirt.qemu.legacy.options.drives import protocol_of
from wirt.qemu.legacy.translate import Translation, todays_line, translate
from wirt.qemu.legacy.values import parse
from wirt.qemu.runtime import Runtime
from wirt.spec.machine import Machine

HERE = Path(__file__).parent
_FILE = "shared/data/lines/old-lines.jsonl"
DATA = next((p / _FILE for p in HERE.parents if (p / _FILE).exists()), HERE / "absent")
SECONDS = 300.0
_PATH = re.compile(r"(?<![\w./)])/(?!/)(?:[\w.+@%-]+/?)+")
"""An absolute path of somebody else's host."""
_LITERAL = {"-append", "-name", "-pidfile_"}


def published() -> list[list[str]]:
    """The published lines, or none where the data is absent."""
    if not DATA.exists():
        return []
    return [json.loads(line)["argv"] for line in DATA.read_text().splitlines()]


def at(words: Sequence[str], base: Path) -> list[str]:
    """Return the line with its absolute paths moved below ``base``."""
    out = list(words[:1])
    for before, word in itertools.pairwise(words):
        moved = word if before in _LITERAL else _PATH.sub(lambda m: f"{base}{m[0]}", word)
        out.append(moved.replace("192.168.10.180", "127.0.0.1"))
    return out


class Host:
    """A directory in which every file exists that a line asks for."""

    def __init__(self, base: Path) -> None:
        self.base = base

    def facts(self, **more: Any) -> Facts:
        return Facts(
            exists=self.exists,
            strict=True,
            has_samba=shutil.which("smbd") is not None,
            **more,
        )

    def exists(self, path: str) -> bool:
        """True for what the test makes, and for what the real host has."""
        mine = not os.path.isabs(path) or path.startswith(str(self.base))
        return mine or os.path.exists(path)

    def furnish(self, machine: Machine, words: Sequence[str]) -> None:
        """Make what the machine and the words name."""
        for disk in machine.disks:
            if disk.image:
                self._image(self.base / disk.image, disk.format, disk.bus)
        for path in (machine.boot.kernel, machine.boot.initrd):
            if path:
                file = self.base / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(_kernel())
        if machine.firmware.code:
            shutil.copy("/usr/share/seabios/bios-256k.bin", self.base / machine.firmware.code)
        if machine.memory_path:
            (self.base / machine.memory_path).mkdir(parents=True, exist_ok=True)
        for word in words:
            self._parents(word)
        self._named(words)

    def _parents(self, word: str) -> None:
        for path in re.findall(rf"{re.escape(str(self.base))}/[^,\":}}]*", word):
            Path(path).parent.mkdir(parents=True, exist_ok=True)

    def _named(self, words: Sequence[str]) -> None:
        for option, value in itertools.pairwise(words):
            said = parse(value) if option in {"-drive", "-virtfs", "-fsdev", "-netdev"} else None
            if said is None:
                continue
            file, path = said.take("file"), said.take("path")
            for script in (said.take("script"), said.take("downscript")):
                self._script(script)
            tftp = said.take("tftp")
            if tftp:
                (self.base / tftp).mkdir(parents=True, exist_ok=True)
            if path:
                (self.base / path).mkdir(parents=True, exist_ok=True)
            if file.startswith("fat:"):
                (self.base / file.rpartition(":")[2]).mkdir(parents=True, exist_ok=True)
            elif file.startswith("blkverify:"):
                self._image(self.base / file.split(":")[1], "raw", "ide")
                self._image(self.base / file.split(":")[2], "qcow2", "ide")
            elif file and not protocol_of(file):
                self._image(self.base / file, said.take("format") or "raw", "ide")
            elif file.startswith("json:"):
                name = json.loads(file[5:]).get("filename")
                if name:
                    self._image(self.base / name, "raw", "ide")

    def _script(self, script: str) -> None:
        if script in {"", "no"}:
            return
        file = self.base / script
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("#!/bin/sh\nexit 0\n")
        file.chmod(0o755)

    @staticmethod
    def _image(path: Path, image_format: str, bus: str) -> None:
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        size = {"floppy": 1440 << 10, "pflash": 64 << 10}.get(bus, 4 << 20)
        if image_format == "raw":
            with path.open("wb") as file:
                file.truncate(size)
            return
        words = ["qemu-img", "create", "-q", "-f", image_format, str(path), str(size)]
        subprocess.run(words, check=True)


def translated(
    words: Sequence[str], host: Host, capabilities: Capabilities, **facts: Any
) -> Translation:
    return translate(at(words, host.base), host.facts(**facts), capabilities)


def line_for(
    translation: Translation, base: Path, capabilities: Capabilities, binary: str
) -> list[str]:
    """Return the line as a test can start it: software, waiting for nobody."""
    overlays = {}
    machine = translation.machine
    if machine is not None:
        for index, disk in enumerate(machine.disks):
            if disk.discard_writes:
                overlays[index] = str(base / f"overlay{index}.qcow2")
                words = ["qemu-img", "create", "-q", "-f", "qcow2", overlays[index], "4M"]
                subprocess.run(words, check=True)
    runtime = Runtime(
        "tcg",
        str(base),
        lambda name: f"{base}/{name}.sock",
        overlays=overlays,
        attended=True,
        sandbox=False,
        uefi_variables=str(base / "variables"),
        firmware_code="/usr/share/OVMF/OVMF_CODE_4M.fd",
    )
    line = todays_line(translation, runtime, capabilities, binary)
    return [word.replace("wait=on", "wait=off") for word in line]


def descriptors(line: Sequence[str]) -> str:
    """Return the descriptors that the line names, as namespace.py takes them."""
    found = {}
    for word in line:
        for number in re.findall(r'[,{]"?fd"?[=:]"?(\d+)', word):
            found[number] = "socket" if "socket" in word else "tap"
        for number in re.findall(r"^fd:(\d+)", word):
            found[number] = "socket"
    for port in re.findall(r"localhost:(\d+),reverse=on", " ".join(line)):
        found[port] = "listen"
    return ",".join(f"{number}={kind}" for number, kind in found.items()) or "-"


@contextmanager
def started(line: Sequence[str], base: Path) -> Iterator[QmpClient]:
    """Start a line, paused, in a namespace of its own. Raises AssertionError with QEMU's words."""
    qmp, pid = base / "test.qmp", base / "test.pid"
    errors = base / "errors"
    extra = ["-qmp", f"unix:{qmp},server=on,wait=off", "-S"]
    if "-pidfile" not in line:
        extra += ["-pidfile", str(pid)]
    else:
        pid = base / line[list(line).index("-pidfile") + 1]
    script = [sys.executable, str(HERE / "namespace.py"), descriptors(line)]
    with errors.open("wb") as file:
        terminal = pty.openpty() if "curses" in line else None
        process = subprocess.Popen(
            [*script, *line, *extra], stdin=terminal[1] if terminal else subprocess.DEVNULL,
            stdout=terminal[1] if terminal else file, stderr=file, cwd=base,
        )  # fmt: skip
    try:
        with _connect(process, qmp, errors, "-daemonize" in line) as client:
            yield client
    finally:
        _end(process, pid)
        for fd in terminal or ():
            os.close(fd)


def _end(process: subprocess.Popen[bytes], pid: Path) -> None:
    """End QEMU, which goes on by itself where the line says ``-daemonize``."""
    try:
        daemon = ProcessId.of(int(pid.read_text()))
    except (OSError, ValueError):
        daemon = None
    process.kill()
    process.wait()
    if daemon is not None:
        daemon.kill()
        daemon.wait(SECONDS)


def _connect(
    process: subprocess.Popen[bytes], path: Path, errors: Path, daemonizes: bool
) -> QmpClient:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        code = process.poll()
        if code is not None and (code or not daemonizes):
            raise AssertionError(f"QEMU ended with {code}: {errors.read_text(errors='replace')}")
        try:
            client = QmpClient.connect(str(path), timeout=SECONDS)
            client.execute("query-status", reply=dict)
        except Exception:  # noqa: BLE001 - not there yet, or gone: the loop finds out which
            time.sleep(0.02)
            continue
        return client
    raise AssertionError("QEMU did not listen")
