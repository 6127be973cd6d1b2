"""Servers of ours, as processes and inside the test; each ends with its test."""

import contextlib
import json
import random
import subprocess
import sys
import threading

import pytest

from wirt.image.base import AllowLocalFiles
from wirt.image.nbd_server.export import Export
from wirt.image.nbd_server.listen import listening_unix
from wirt.image.nbd_server.server import Server
from wirt.image.open import open_image

MIB = 1 << 20
SIZE = 24 * MIB


@pytest.fixture
def data():
    """The bytes of a disk: data in every third MiB."""
    chance = random.Random(9)
    data = bytearray(SIZE)
    for at in range(0, SIZE, 3 * MIB):
        data[at : at + MIB] = chance.randbytes(MIB)
    return data


@pytest.fixture
def raw(data, tmp_path):
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        for at in range(0, SIZE, 3 * MIB):
            file.seek(at)
            file.write(data[at : at + MIB])
        file.truncate(SIZE)
    return path


def converted(raw, name, *options):
    path = raw.with_suffix(f".{name}")
    words = ["qemu-img", "convert", "-f", "raw", "-O", name, *options, raw, path]
    subprocess.run(list(map(str, words)), check=True)
    return path


@pytest.fixture
def serve(tmp_path):
    """Start ``wirt img serve``; return its process, which has ``uris``."""
    started = []

    def start(*words, **options):
        command = [sys.executable, "-m", "wirt", "img", "serve", "--json", *map(str, words)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, **options)
        started.append(process)
        line = process.stdout.readline()
        assert line, "the server said nothing"
        process.uris = json.loads(line)["uris"]
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@contextlib.contextmanager
def served_here(path, socket, *, read_only=False, name=None, **options):
    """Serve an image from a thread of this process; yield the server."""
    with (
        open_image(str(path), format=name, writable=not read_only, gate=AllowLocalFiles()) as image,
        listening_unix(str(socket)) as listening,
    ):
        export = Export("", image, read_only=read_only)
        server = Server(listening.socket, [export], persistent=True, **options)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield server
        finally:
            server.stop()
            thread.join()
