"""Processes: the one place that starts them, and a name for them that a pid reuse cannot steal."""

from __future__ import annotations

import os
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import IO

import msgspec

from wirt.errors import HostError, MissingDependency, Timeout

Stream = int | IO[bytes] | None

_PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "setpriv": "util-linux",
    "newuidmap": "uidmap",
    "unshare": "util-linux",
    "swtpm": "swtpm",
    "vde_switch": "vde2",
    "vde_plug": "vdeplug",
    "wirefilter": "vde2",
    "dnsmasq": "dnsmasq-base",
    "nft": "nftables",
    "tc": "iproute2",
    "nsenter": "util-linux",
    "ip": "iproute2",
    "sysctl": "procps",
}
_MORE_PATH = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_NOT_FOR_CHILDREN = (
    "LANGUAGE",  # programs whose messages we show speak English
    "LISTEN_FDS",  # QEMU's tools would take sockets that were meant for us
    "LISTEN_FDNAMES",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
)
MAX_OUTPUT = 16 << 20
"""Bytes that ``run`` keeps of each stream unless told otherwise."""


def find_program(name: str) -> str:
    """Return the path of a program. Raises MissingDependency with the package to install.

    The directories of root's programs are searched too: an ordinary user's PATH lacks them.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_MORE_PATH])
    found = shutil.which(name, path=path)
    if found is not None and is_front_end(found):
        places = path.split(os.pathsep)
        others = (shutil.which(name, path=place) for place in places)
        found = next((other for other in others if other and not is_front_end(other)), None)
    if found is None and os.sep in name:
        raise MissingDependency(f"{name} is not a program", hint="check the path and its mode")
    if found is None:
        package = _PACKAGES.get(os.path.basename(name), os.path.basename(name))
        raise MissingDependency(f"the program {name} is missing", hint=f"apt install {package}")
    return found


def is_front_end(path: str) -> bool:
    """True for wirt's own ``kvm``, which may go by QEMU's names: a script that imports it."""
    if not os.path.basename(path).startswith(("qemu", "kvm")):
        return False
    try:
        with open(path, "rb") as file:
            start = file.read(4096)
    except OSError:
        return False
    return start.startswith(b"#!") and b"wirt.cli.kvm.main" in start


def spawn(
    argv: Sequence[str],
    *,
    stdin: Stream = subprocess.DEVNULL,
    stdout: Stream = None,
    stderr: Stream = None,
    pass_fds: Collection[int] = (),
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    new_session: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a program: standard input is empty unless given, the language is English.

    ``env`` adds to the environment. Raises MissingDependency, HostError.
    """
    _log(argv)
    program = find_program(argv[0])
    try:
        return subprocess.Popen(
            with_parent([program, *argv[1:]], os.getpid()),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=tuple(pass_fds),
            env=_environment(env or {}),
            cwd=cwd,
            start_new_session=new_session,
        )
    except OSError as error:
        place = f" ({error.filename})" if error.filename not in {None, program} else ""
        raise HostError(f"{argv[0]} cannot be started: {error.strerror}{place}") from error
    except ValueError as error:  # a NUL in an argument, which no program can be given
        raise HostError(f"{argv[0]} cannot be started: {error}") from error


def _log(argv: Sequence[str]) -> None:
    """Who wants to see has imported ``logging``; it takes longer than all else here."""
    if "logging" in sys.modules:
        import logging

        logging.getLogger(__name__).debug("spawn: %s", shlex.join(argv))


_PARENT = "@PARENT@"


def mortal(argv: Sequence[str]) -> list[str]:
    """Return ``argv`` so that the kernel kills the program when the thread that starts it ends.

    For helpers that must not outlive us, even if we are killed. The kernel tells only of ends
    to come: a program whose parent is not the one that started it any more ends by itself.
    To be started by ``spawn``, or by whoever puts its process id there: ``with_parent``.
    """
    check = ["/bin/sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"', _PARENT]
    return [find_program("setpriv"), "--pdeathsig=KILL", "--", *check, *argv]


def with_parent(argv: Sequence[str], pid: int) -> list[str]:
    """Return a line that may be ``mortal`` for the process ``pid`` to start."""
    return [str(pid) if word == _PARENT else word for word in argv]


def detach(process: subprocess.Popen[bytes]) -> None:
    """Let a child live on by itself; should it end while we are here, it is reaped."""
    threading.Thread(target=process.wait, name=f"reap {process.pid}", daemon=True).start()


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_CHILDREN}
    return {**kept, "LC_ALL": "C.UTF-8", **extra}


class Completed(msgspec.Struct, frozen=True):
    """A program that ended: exit code (negative: signal) and output."""

    returncode: int
    stdout: bytes
    stderr: bytes


def run(
    argv: Sequence[str],
    *,
    input: bytes = b"",  # noqa: A002 - the name that subprocess gave it
    timeout: float = 60.0,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    max_output: int = MAX_OUTPUT,
) -> Completed:
    """Run a program to its end with captured output, which may not exceed ``max_output``.

    With ``check``, a failure is an error that carries the program's own last words.
    Raises MissingDependency, HostError, Timeout.
    """
    process = spawn(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=env, cwd=cwd,
    )  # fmt: skip
    deadline = time.monotonic() + timeout
    try:
        out, err = _converse(process, input, deadline, max_output)
        process.wait(max(0.0, deadline - time.monotonic()))
    except (subprocess.TimeoutExpired, TimeoutError) as error:
        raise Timeout(f"{argv[0]} did not end within {timeout:.0f} s") from error
    except OverflowError as error:
        raise HostError(f"{argv[0]} said more than {max_output} bytes") from error
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    if check and process.returncode != 0:
        raise HostError(f"{argv[0]} {describe_end(process.returncode)}: {_last_words(err or out)}")
    return Completed(process.returncode, out, err)


def _converse(
    process: subprocess.Popen[bytes], text: bytes, deadline: float, limit: int
) -> tuple[bytes, bytes]:
    """Write ``text`` and read both streams to their end, in whatever order the program likes."""
    out, err = bytearray(), bytearray()
    left = memoryview(text)
    with selectors.DefaultSelector() as selector:
        for stream, buffer in ((process.stdout, out), (process.stderr, err), (process.stdin, None)):
            if stream is not None:
                events = selectors.EVENT_WRITE if buffer is None else selectors.EVENT_READ
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, events, buffer)
        while selector.get_map():
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                raise TimeoutError
            for key, _ in selector.select(seconds):
                if key.data is not None and not _read_some(key.fd, key.data, limit):
                    selector.unregister(key.fileobj)
                elif key.data is None:
                    left = left[_write_some(key.fd, left) :]
                    if not left and process.stdin is not None:
                        selector.unregister(key.fileobj)
                        process.stdin.close()
    return bytes(out), bytes(err)


def _read_some(fd: int, buffer: bytearray, limit: int) -> bool:
    data = os.read(fd, 1 << 16)
    buffer += data
    if len(buffer) > limit:
        raise OverflowError
    return bool(data)


def _write_some(fd: int, data: memoryview) -> int:
    """Return how much the program took; all of it if it does not want to read."""
    try:
        return os.write(fd, data[:4096])
    except BrokenPipeError:
        return len(data)


def describe_end(returncode: int) -> str:
    """Return in words how a program ended; ``returncode`` as subprocess has it."""
    if returncode >= 0:
        return f"failed with exit code {returncode}"
    try:
        return f"was ended by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was ended by signal {-returncode}"


def _last_words(output: bytes) -> str:
    lines = [line.strip() for line in output[-4096:].decode(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it said nothing")
