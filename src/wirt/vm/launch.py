"""From a command line to a QEMU process that answers QMP, or its own words why not."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Collection

import msgspec

from wirt.errors import (
    Busy,
    HostError,
    MissingDependency,
    NoSpace,
    PeerClosed,
    QemuError,
    Timeout,
    WirtError,
)
from wirt.host.process import spawn
from wirt.host.process_id import ProcessId
from wirt.protocols.qmp.client import QmpClient
from wirt.vm.tpm import Tpm, spawn_with

# GLib before 2.76 keeps small pieces in a pool of its own, and with it 1 MiB of each fork's 31.
_ENVIRONMENT = {"G_SLICE": "always-malloc"}
_POLL_SECONDS = 0.003
_MESSAGE_BYTES = 64 << 10
_END_SECONDS = 15.0


class Launched(msgspec.Struct):
    """A QEMU that answers, paused before its first instruction."""

    process: subprocess.Popen[bytes]
    qmp: QmpClient
    messages_fd: int
    """The reading end of its standard error."""
    tpm: ProcessId | None = None

    def kill(self) -> None:
        """Undo the launch: the guest has not run."""
        end(self.process, self.tpm)

    def close(self) -> None:
        """Let go of a QEMU that others look after now."""
        self.qmp.close()
        self.messages_fd = _closed(self.messages_fd)


class Starting(msgspec.Struct):
    """A QEMU process that may not answer yet."""

    process: subprocess.Popen[bytes]
    messages_fd: int
    tpm: ProcessId | None = None

    def connect(self, qmp_socket: str, *, timeout: float) -> Launched:
        """Return it when it answers; end it if it does not. Raises QemuError, Timeout."""
        try:
            qmp = _connect(self.process, qmp_socket, self.messages_fd, timeout)
        except BaseException:
            self.end()
            raise
        return Launched(self.process, qmp, self.messages_fd, self.tpm)

    def end(self) -> None:
        """Undo the start."""
        end(self.process, self.tpm)
        self.messages_fd = _closed(self.messages_fd)


def _closed(fd: int) -> int:
    """Close a descriptor, but not another one that has its number since."""
    if fd >= 0:
        os.close(fd)
    return -1


def begin(argv: list[str], inherit: Collection[int], tpm: Tpm | None = None) -> Starting:
    """Start QEMU, and its TPM, without waiting for it."""
    read_fd, write_fd = os.pipe()

    def start(line: list[str], fds: Collection[int]) -> subprocess.Popen[bytes]:
        return spawn(
            line, stdin=subprocess.DEVNULL, stdout=write_fd, stderr=write_fd,
            pass_fds=fds, new_session=True, cwd="/", env=_ENVIRONMENT,
        )  # fmt: skip

    try:
        if tpm is None:
            return Starting(start(argv, inherit), read_fd)
        process, module = spawn_with(tpm, argv, inherit, start)
        return Starting(process, read_fd, module)
    except BaseException:
        os.close(read_fd)
        raise
    finally:
        os.close(write_fd)


def launch(
    argv: list[str], qmp_socket: str, inherit: list[int], tpm: Tpm | None, *, timeout: float
) -> Launched:
    """Start QEMU and connect to it within ``timeout`` seconds. Raises QemuError, Timeout."""
    return begin(argv, inherit, tpm).connect(qmp_socket, timeout=timeout)


def _connect(
    process: subprocess.Popen[bytes], path: str, messages_fd: int, timeout: float
) -> QmpClient:
    deadline = time.monotonic() + timeout
    while True:
        if process.poll() is not None:
            raise explain(_read_messages(messages_fd), process.returncode)
        left = deadline - time.monotonic()
        if left <= 0:
            raise Timeout(
                f"QEMU did not answer within {timeout:.0f} s", hint="the host may be overloaded"
            )
        client = _answering(process, path, left) if os.path.exists(path) else None
        if client is not None:
            return client
        time.sleep(_POLL_SECONDS)


def _answering(process: subprocess.Popen[bytes], path: str, timeout: float) -> QmpClient | None:
    """Return a client that was answered; None if QEMU is not ready, or has just ended."""
    try:
        client = QmpClient.connect(path, timeout=timeout)
    except PeerClosed:
        return None  # bound but not listening yet
    try:
        # QEMU 7.2 greets before it has made the machine: only an answered command proves it.
        client.execute("query-status", reply=dict, timeout=timeout)
    except WirtError:
        client.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
            return None
        raise
    return client


def last_words(launched: Launched) -> WirtError:
    """Say why a QEMU that was launched has ended, or is useless, and end it."""
    end(launched.process)
    return explain(_read_messages(launched.messages_fd), launched.process.returncode)


def _read_messages(fd: int) -> str:
    os.set_blocking(fd, False)
    data = b""
    while len(data) < _MESSAGE_BYTES:
        try:
            part = os.read(fd, _MESSAGE_BYTES)
        except BlockingIOError:
            break
        if not part:
            break
        data += part
    return data.decode(errors="replace")


def explain(messages: str, code: int | None) -> WirtError:
    """Turn what QEMU printed before it ended into an error with a next step."""
    text = _clean(messages)
    in_use = re.search(r'Failed to get (?:shared )?"\w+" lock', text)
    if in_use:
        image = re.search(r"Is another process using the image \[(.*?)\]", text)
        return Busy(
            f"the image {image[1] if image else ''} is in use by another process".replace(
                "  ", " "
            ),
            hint="another machine has it open: wirt ls, or fuser IMAGE",
        )
    if "Address already in use" in text:
        card = re.search(r'"id":"([^"]+)-net"', text)
        return Busy(
            f"{card[1] if card else 'QEMU'} cannot listen: another program or machine has the "
            f"address already ({text[-200:]})",
            hint="choose another port, or see who has it: ss -lnpt",
        )
    if "No space left on device" in text:
        return NoSpace(text)
    missing = re.search(r"'([\w.-]+)' is not a valid device model name", text)
    if missing:
        return MissingDependency(
            f"this QEMU has no device {missing[1]}",
            hint="its module may be in another package: apt install qemu-system-gui "
            "qemu-system-modules-spice",
        )
    if "Cannot allocate memory" in text or "cannot set up guest memory" in text:
        return HostError(f"not enough memory: {text}", hint="give the machine less: wirt set")
    if not text:
        how = f"by signal {signal.Signals(-code).name}" if code and code < 0 else f"with {code}"
        return QemuError(f"QEMU ended {how} and said nothing", hint="wirt show --argv NAME")
    return QemuError(text, hint="see the line: wirt show --argv NAME")


def _clean(messages: str) -> str:
    """QEMU's last words in one line, without its program name and time stamps."""
    lines = []
    for stamped in messages.splitlines():
        named = re.sub(r"^\S*T\S+Z ", "", stamped.strip())
        line = re.sub(r"^\S*qemu[\w.-]*: ", "", named)
        if line and "warning:" not in line:
            lines.append("".join(c if c.isprintable() else "?" for c in line))
    return "; ".join(lines[-4:])[:1000]


def end(process: subprocess.Popen[bytes], tpm: ProcessId | None = None) -> None:
    """Kill and reap a child that must not run; its TPM ends with it."""
    process.kill()
    process.wait()
    if tpm is not None:
        tpm.wait(_END_SECONDS)
