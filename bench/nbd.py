"""NBD against QEMU: our server and qemu-nbd under the same load, our client and qemu-img.

The load for servers is nbdcopy; CPU is that of client and server together. Our client is timed
inside its process, without start-up, as the image engine is. All files are in the page cache.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bench.pairs import Row, Sample, compare, run

TITLE = "NBD against qemu-nbd and qemu-img (ours / theirs; below 1 is faster)"
_SIZE = 1 << 30
_ROUNDS = 5
_TICKS = os.sysconf("SC_CLK_TCK")


def rows() -> list[Row]:
    root = Path(tempfile.mkdtemp(prefix="wirt-bench-", dir="/var/tmp"))
    try:
        return [*_servers(root, _source(root)), *_clients(root)]
    finally:
        shutil.rmtree(root)


def _source(root: Path) -> Path:
    """Make a disk of 1 GiB, three quarters of it random data in runs of 3 MiB."""
    source = root / "disk.raw"
    piece = os.urandom(3 << 20)
    with source.open("wb") as file:
        for at in range(0, _SIZE, 4 << 20):
            file.seek(at)
            file.write(piece)
        file.truncate(_SIZE)
    for name in ("qcow2", "vmdk"):
        packed = ["-o", "subformat=streamOptimized"] if name == "vmdk" else []
        words = ["qemu-img", "convert", "-O", name, *packed, source, root / f"disk.{name}"]
        subprocess.run(words, check=True)
    return source


@contextmanager
def _server(words: Sequence[str | Path], socket: Path) -> Iterator[int]:
    socket.unlink(missing_ok=True)
    process = subprocess.Popen(
        list(map(str, words)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not socket.exists():
            if process.poll() is not None:
                raise SystemExit(f"{words[0]} did not start")
            time.sleep(0.02)
        time.sleep(0.1)  # bound, and now listening
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def _ours(image: Path, name: str, socket: Path, *, write: bool) -> list[str | Path]:
    mode = [] if write else ["-r"]
    serve = [sys.executable, "-m", "wirt", "img", "serve", "-t", "--unix", socket]
    return [*serve, *mode, "--format", name, image]


def _theirs(image: Path, name: str, socket: Path, *, write: bool) -> list[str | Path]:
    mode = [] if write else ["-r"]
    return ["qemu-nbd", "-t", "-e", "8", "-k", socket, *mode, "-f", name, image]


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _measured(server: list[str | Path], socket: Path, load: Sequence[str]) -> Callable[[], Sample]:
    """Time ``load`` with a server of its own, which is not timed while it starts."""

    def measure() -> Sample:
        with _server(server, socket) as pid:
            before = _cpu_of(pid)
            sample = run(load)
            return replace(sample, cpu=sample.cpu + _cpu_of(pid) - before)

    return measure


def _servers(root: Path, source: Path) -> Iterator[Row]:
    socket = root / "s"
    uri = f"nbd+unix:///?socket={socket}"
    for name in ("raw", "qcow2", "vmdk"):
        image = root / f"disk.{name}"
        load = ["nbdcopy", uri, "null:"]
        yield compare(
            f"serve {name}: nbdcopy reads 1 GiB",
            _measured(_ours(image, name, socket, write=False), socket, load), "qemu-nbd",
            _measured(_theirs(image, name, socket, write=False), socket, load),
            rounds=_ROUNDS, target="reported",
        )  # fmt: skip
    for name in ("raw", "qcow2"):
        target = root / f"target.{name}"
        subprocess.run(["qemu-img", "create", "-q", "-f", name, target, str(_SIZE)], check=True)
        load = ["nbdcopy", str(source), uri]
        yield compare(
            f"serve {name}: nbdcopy writes 1 GiB",
            _measured(_ours(target, name, socket, write=True), socket, load), "qemu-nbd",
            _measured(_theirs(target, name, socket, write=True), socket, load),
            rounds=_ROUNDS, target="reported",
        )  # fmt: skip
        target.unlink()


def _clients(root: Path) -> Iterator[Row]:
    socket, target = root / "s", root / "target.raw"
    uri = f"nbd+unix:///?socket={socket}"
    image = root / "disk.qcow2"

    def ours() -> Sample:
        target.unlink(missing_ok=True)
        with _server(_theirs(image, "qcow2", socket, write=False), socket):
            words = ["convert", uri, str(target), "raw", "{}", "raw"]
            done = subprocess.run(
                [sys.executable, "-m", "bench.image_operation", *words],
                check=True, capture_output=True,
            )  # fmt: skip
            return Sample(**json.loads(done.stdout))

    def theirs() -> Sample:
        target.unlink(missing_ok=True)
        with _server(_theirs(image, "qcow2", socket, write=False), socket):
            words = ["-t", "writeback", "-f", "raw", "-O", "raw", uri, str(target)]
            return run(["qemu-img", "convert", *words])

    yield compare(
        "convert 1 GiB from qemu-nbd to raw", ours, "qemu-img convert", theirs,
        rounds=_ROUNDS, target="reported",
    )  # fmt: skip
