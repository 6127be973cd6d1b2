"""The console keeper: one small process beside a QEMU, with nothing in it that matters.

A QEMU character device serves one client and forgets what nobody reads. The keeper is that
client: it writes what the guest says to a log that cannot grow beyond its bound, and shows
it to any number of viewers (``wirt console``). It ends when QEMU does. Killed, it costs
the log of the time until the next wirt command starts another one; QEMU does not notice.

Run as ``python -I -S keeper.py FD`` with its settings as JSON on descriptor FD, and only the
standard library: it starts in a few milliseconds and holds about 9 MiB.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import sys
from typing import Any

CHUNK = 65536
VIEWER_BUFFER = 1 << 20
"""A viewer that reads more slowly than this much is cut off."""
INPUT_BUFFER = 65536
"""Keyboard input that the guest has not taken yet; viewers wait beyond it."""
HISTORY = 4096
"""What a new viewer is shown of the past."""


class BoundedLog:
    """A file and its predecessor, each at most ``limit`` bytes."""

    def __init__(self, path: str, limit: int) -> None:
        self._path = path
        self._limit = limit
        self._fd = self._open()

    def _open(self) -> int:
        # The directory is QEMU's: a pipe in the log's place would let the keeper wait for ever.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        return os.open(self._path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)

    def write(self, data: bytes) -> None:
        """Append; a full disk loses log lines, never the console."""
        with contextlib.suppress(OSError):
            if os.fstat(self._fd).st_size + len(data) > self._limit:
                self._rotate()
            os.write(self._fd, data[-self._limit :])

    def _rotate(self) -> None:
        os.rename(self._path, f"{self._path}.1")
        os.close(self._fd)
        self._fd = self._open()

    def tail(self, length: int) -> bytes:
        """Return the last bytes of the file."""
        with contextlib.suppress(OSError), open(self._path, "rb") as file:
            file.seek(max(0, os.fstat(self._fd).st_size - length))
            return file.read(length)
        return b""


class Console:
    """One character device of QEMU, its log and its viewers."""

    def __init__(self, selector: selectors.BaseSelector, settings: dict[str, Any]) -> None:
        self._selector = selector
        self._log = BoundedLog(settings["log"], settings["limit"])
        self._guest = _device(settings)
        self._guest.setblocking(False)
        self._to_guest = b""
        self._viewers: dict[socket.socket, bytes] = {}
        self._listener = _viewers(settings)
        selector.register(self._guest, selectors.EVENT_READ, self._serve_guest)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self.open = True

    def _serve_guest(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._send_input()
        if events & selectors.EVENT_READ:
            self._read_guest()

    def _read_guest(self) -> None:
        try:
            data = self._guest.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end()
            return
        self._log.write(data)
        for viewer in list(self._viewers):
            self._queue(viewer, data)

    def _end(self) -> None:
        self.open = False
        self._selector.unregister(self._guest)
        self._selector.unregister(self._listener)
        for viewer in list(self._viewers):
            self._drop(viewer)

    def _send_input(self) -> None:
        with contextlib.suppress(OSError):
            sent = self._guest.send(self._to_guest)
            self._to_guest = self._to_guest[sent:]
        if not self._to_guest:
            self._selector.modify(self._guest, selectors.EVENT_READ, self._serve_guest)
            for viewer in self._viewers:
                self._watch(viewer)

    def _accept(self, _events: int) -> None:
        with contextlib.suppress(OSError):
            viewer, _ = self._listener.accept()
            viewer.setblocking(False)
            self._viewers[viewer] = b""
            self._selector.register(
                viewer, selectors.EVENT_READ, lambda events: self._serve(viewer, events)
            )
            self._queue(viewer, self._log.tail(HISTORY))

    def _serve(self, viewer: socket.socket, events: int) -> None:
        if events & selectors.EVENT_WRITE and viewer in self._viewers:
            self._flush(viewer)
        if events & selectors.EVENT_READ and viewer in self._viewers:
            self._read_viewer(viewer)

    def _read_viewer(self, viewer: socket.socket) -> None:
        try:
            data = viewer.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(viewer)
            return
        self._to_guest += data
        both = selectors.EVENT_READ | selectors.EVENT_WRITE
        self._selector.modify(self._guest, both, self._serve_guest)
        if len(self._to_guest) > INPUT_BUFFER:
            for other in self._viewers:
                self._watch(other)

    def _queue(self, viewer: socket.socket, data: bytes) -> None:
        self._viewers[viewer] += data
        if len(self._viewers[viewer]) > VIEWER_BUFFER:
            self._drop(viewer)
            return
        self._flush(viewer)

    def _flush(self, viewer: socket.socket) -> None:
        try:
            sent = viewer.send(self._viewers[viewer]) if self._viewers[viewer] else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(viewer)
            return
        self._viewers[viewer] = self._viewers[viewer][sent:]
        self._watch(viewer)

    def _watch(self, viewer: socket.socket) -> None:
        wanted = 0
        if len(self._to_guest) <= INPUT_BUFFER:
            wanted |= selectors.EVENT_READ
        if self._viewers[viewer]:
            wanted |= selectors.EVENT_WRITE
        key = self._key(viewer)
        if key is None and wanted:
            self._selector.register(viewer, wanted, lambda events: self._serve(viewer, events))
        elif key is not None and not wanted:
            self._selector.unregister(viewer)
        elif key is not None:
            self._selector.modify(viewer, wanted, key.data)

    def _key(self, viewer: socket.socket) -> selectors.SelectorKey | None:
        try:
            return self._selector.get_key(viewer)
        except KeyError:
            return None

    def _drop(self, viewer: socket.socket) -> None:
        if self._key(viewer) is not None:
            self._selector.unregister(viewer)
        self._viewers.pop(viewer, None)
        viewer.close()


def _device(settings: dict[str, Any]) -> socket.socket:
    if settings.get("device_fd") is not None:
        return socket.socket(fileno=settings["device_fd"])
    device = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    device.connect(settings["device"])
    return device


def _viewers(settings: dict[str, Any]) -> socket.socket:
    if settings.get("viewers_fd") is None:
        return _listen(settings["viewers"])
    listener = socket.socket(fileno=settings["viewers_fd"])
    listener.setblocking(False)
    return listener


def _listen(path: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(16)
    listener.setblocking(False)
    return listener


def _drain(fd: int, log: BoundedLog, selector: selectors.BaseSelector) -> None:
    """Keep QEMU's own messages."""
    try:
        data = os.read(fd, CHUNK)
    except OSError:
        data = b""
    if data:
        log.write(data)
    else:
        selector.unregister(fd)


def _become(uid: int) -> None:
    """Leave root for the VM's uid, after the interpreter has been loaded as root."""
    if uid and os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def _hold(path: str) -> int:
    """Open the memory file of the machine; -1 if it has none."""
    with contextlib.suppress(OSError):
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC) if path else -1
    return -1


def _give_back(path: str, fd: int) -> None:
    """QEMU has ended: free its memory, unless that is frozen or another's by now."""
    with contextlib.suppress(OSError):
        if fd >= 0 and os.path.samestat(os.stat(path), os.fstat(fd)):
            os.ftruncate(fd, 0)


def main() -> int:
    with open(int(sys.argv[1]), "rb") as file:
        settings = json.loads(file.read())
    _become(settings["uid"])
    os.umask(0o077)
    selector = selectors.DefaultSelector()
    messages = settings.get("messages_fd")
    if messages is not None:
        log = BoundedLog(settings["messages_log"], settings["limit"])
        selector.register(messages, selectors.EVENT_READ, lambda _: _drain(messages, log, selector))
    memory = _hold(settings["memory"])
    consoles = [Console(selector, one) for one in settings["consoles"]]
    with contextlib.suppress(BrokenPipeError):  # nobody waits where connections were given
        os.write(settings["ready_fd"], b"1")
    os.close(settings["ready_fd"])
    while any(console.open for console in consoles) or (not consoles and selector.get_map()):
        for key, events in selector.select():
            key.data(events)
    _give_back(settings["memory"], memory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
