"""The console keeper by itself: whatever its viewers do, it ends when its QEMU does."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from wirt.vm import keeper

SECONDS = 60


class Kept:
    """A keeper, and the ends of QEMU and of viewers."""

    def __init__(self, directory, consoles=1):
        self.logs = [directory / f"log{index}" for index in range(consoles)]
        pairs = [socket.socketpair() for _ in self.logs]
        self.devices = [ours for ours, _ in pairs]
        self.views = [str(directory / f"view{index}") for index in range(consoles)]
        entries = [
            {"device": "", "device_fd": theirs.fileno(), "viewers": view, "log": str(log),
             "limit": 1 << 20}
            for (_, theirs), view, log in zip(pairs, self.views, self.logs, strict=True)
        ]  # fmt: skip
        self.ready, ready = os.pipe()
        settings = {"uid": 0, "limit": 1 << 20, "ready_fd": ready, "memory": "",
                    "consoles": entries}  # fmt: skip
        told = os.memfd_create("settings")
        os.write(told, json.dumps(settings).encode())
        os.lseek(told, 0, os.SEEK_SET)
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__, str(told)],
            pass_fds=[told, ready, *(theirs.fileno() for _, theirs in pairs)],
            stderr=subprocess.DEVNULL,
        )
        for fd in (told, ready):
            os.close(fd)
        for _, theirs in pairs:
            theirs.close()

    def view(self, index=0):
        viewer = socket.socket(socket.AF_UNIX)
        viewer.settimeout(SECONDS)
        viewer.connect(self.views[index])
        return viewer

    def await_ready(self):
        assert os.read(self.ready, 1) == b"1"

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.ready)
        for device in self.devices:
            device.close()


@pytest.fixture
def keep(tmp_path):
    with contextlib.ExitStack() as stack:

        def start(**options):
            return stack.enter_context(contextlib.closing(Kept(tmp_path, **options)))

        yield start


def test_it_ends_with_its_qemu_although_somebody_looks_and_types(keep):
    kept = keep()
    kept.await_ready()
    with kept.view() as idle, kept.view() as busy:
        kept.devices[0].sendall(b"hello")
        assert idle.recv(5) == busy.recv(5) == b"hello"
        busy.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:  # more than the guest takes
                busy.send(bytes(4096))
        kept.devices[0].close()
        assert kept.process.wait(SECONDS) == 0
    assert kept.logs[0].read_bytes() == b"hello"


def test_it_keeps_one_console_when_another_ends_under_its_viewers(keep):
    kept = keep(consoles=2)
    kept.await_ready()
    viewers = [kept.view() for _ in range(8)]
    for viewer in viewers:
        viewer.sendall(b"x")
    kept.devices[0].sendall(bytes(1 << 16))
    kept.devices[0].close()
    for viewer in viewers:
        viewer.close()
    with kept.view(1) as other:
        kept.devices[1].sendall(b"still")
        assert other.recv(5) == b"still"
    kept.devices[1].close()
    assert kept.process.wait(SECONDS) == 0
    assert kept.logs[1].read_bytes() == b"still"


def test_a_pipe_in_the_place_of_its_log_does_not_hold_it(keep, tmp_path):
    os.mkfifo(tmp_path / "log0")
    kept = keep()
    assert kept.process.wait(SECONDS) != 0
    assert Path(tmp_path / "log0").is_fifo()
