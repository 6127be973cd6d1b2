"""NBD servers of others, for the tests of ours; each dies with its block."""

import contextlib
import os
import socket as socketlib
import subprocess
import time


def wait_until(true, *, seconds=120):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def _listens(path):
    """A socket that is bound may not listen yet."""
    with socketlib.socket(socketlib.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@contextlib.contextmanager
def running(*words, socket):
    """Yield the process of a server that listens."""
    process = subprocess.Popen(
        list(map(str, words)),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        wait_until(lambda: _listens(socket) or process.poll() is not None)
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
