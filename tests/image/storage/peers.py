"""NBD servers of others, for the tests of ours; each dies with its block."""

import contextlib
import os
import subprocess
import time
from pathlib import Path


def wait_until(true, *, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


@contextlib.contextmanager
def running(*words, socket):
    """Yield the process of a server that has made its socket."""
    process = subprocess.Popen(
        list(map(str, words)),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        wait_until(lambda: Path(socket).exists() or process.poll() is not None)
        assert process.poll() is None, process.stderr.read().decode()
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(socket)


def qemu_nbd(socket, image, *words, shared=4):
    return running("qemu-nbd", "-t", "-k", socket, "-e", shared, *words, image, socket=socket)


def nbdkit(socket, *words):
    return running("nbdkit", "-f", "-U", socket, *words, socket=socket)


def uri(socket, export="", **parameters):
    more = "".join(f"&{name}={value}" for name, value in parameters.items())
    return f"nbd+unix:///{export}?socket={socket}{more}"
