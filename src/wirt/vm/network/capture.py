"""What passes a card or a switch, while it passes.

QEMU writes a card's frames to a named pipe, which it notices to be closed when the reader is
gone, however that ended: a capture can neither fill the disk nor outlive its command. Frames
that come faster than they are taken away are dropped and counted, since a full pipe would
stop the guest.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from wirt.errors import NotFound, ProtocolError, WirtError
from wirt.net import switch
from wirt.net.pcap import Frame, PcapDecoder
from wirt.net.place import vde_port
from wirt.qemu.nic import attachment
from wirt.spec.nic import Unplugged
from wirt.store.layout import VmPaths
from wirt.store.machines import find
from wirt.store.record import Record, Wire
from wirt.vm import state
from wirt.vm.context import Context
from wirt.vm.monitor import connect
from wirt.vm.network import switches
from wirt.vm.network.cards import wire_id

PLUG = "wirt capture"
_PIPE_BYTES = 1 << 20
_WAITING_FRAMES = 10_000
_CHUNK = 1 << 16
_LONGEST_FRAME = 65_536
_POLL_SECONDS = 0.2


class Capture:
    """Frames as they come. ``dropped`` counts those that nobody took in time."""

    def __init__(self) -> None:
        self._frames: queue.Queue[Frame] = queue.Queue(_WAITING_FRAMES)
        self._ended = threading.Event()
        self.dropped = 0

    def get(self, timeout: float) -> Frame | None:
        """Return the next frame, or None after ``timeout`` seconds or at the end."""
        try:
            return self._frames.get(timeout=timeout)
        except queue.Empty:
            return None

    @property
    def ended(self) -> bool:
        """True when no frame will come any more: the machine or switch is gone."""
        return self._ended.is_set() and self._frames.empty()

    def offer(self, frame: Frame) -> None:
        try:
            self._frames.put_nowait(frame)
        except queue.Full:
            self.dropped += 1

    def end(self) -> None:
        self._ended.set()


@contextmanager
def capture_card(context: Context, name: str, card: str = "") -> Iterator[Capture]:
    """Capture at a card, the first one if none is named, while the block lasts.

    Raises NotFound, WrongState. With vhost the kernel moves frames past QEMU, and none come.
    """
    paths = find(context.home, name)
    record = state.require_running(paths).record
    wire = _wire(paths, record, card)
    pipe = os.path.join(paths.runtime, f"capture-{wire_id(wire)}-{os.getpid()}")
    filter_id = f"capture-{wire_id(wire)}-{os.getpid()}"
    with _pipe(pipe, record.uid) as fd:
        options = {
            "qom-type": "filter-dump",
            "id": filter_id,
            "netdev": attachment(wire_id(wire), wire.hub),
            "file": pipe,
            "maxlen": _LONGEST_FRAME,
        }
        with connect(paths, record) as qmp:
            qmp.execute("object-add", options)
        source = _from_tap_pipe if _has_headers(wire) else _from_pipe
        try:
            with _reading(fd, source) as capture:
                yield capture
        finally:
            with contextlib.suppress(WirtError), connect(paths, record) as qmp:
                qmp.execute("object-del", {"id": filter_id})


def _wire(paths: VmPaths, record: Record, card: str) -> Wire:
    wires = record.run.wires if record.run is not None else ()
    for wire in wires:
        if wire_id(wire) == card or (not card and not isinstance(wire.nic.backend, Unplugged)):
            return wire
    names = ", ".join(map(wire_id, wires)) or "none"
    raise NotFound(f"{paths.name} has no network card {card[:40]!r}", hint=f"it has: {names}")


@contextmanager
def _pipe(path: str, uid: int) -> Iterator[int]:
    os.mkfifo(path, 0o600)
    try:
        if uid:
            os.chown(path, uid, uid)
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        try:
            yield fd
        finally:
            os.close(fd)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _from_pipe(fd: int, capture: Capture, stop: threading.Event) -> None:
    decoder = PcapDecoder()
    begun = False
    while not stop.is_set():
        if not select.select([fd], [], [], _POLL_SECONDS)[0]:
            continue
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            continue
        if not data and begun:
            return
        if not data:  # QEMU has not opened it yet
            time.sleep(0.01)
            continue
        begun = True
        for frame in decoder.feed(data):
            capture.offer(frame)


def _has_headers(wire: Wire) -> bool:
    """True if the frames of a card may have virtio's header in front (QEMU 7.2 records it)."""
    return wire.hub is None and wire.nic.model == "virtio"


def _from_tap_pipe(fd: int, capture: Capture, stop: threading.Event) -> None:
    plain = capture.offer

    def offer(frame: Frame) -> None:
        cut = header_length(frame.data)
        plain(Frame(frame.time, frame.data[cut:], frame.length - cut))

    capture.offer = offer  # type: ignore[method-assign]
    _from_pipe(fd, capture, stop)


def header_length(data: bytes) -> int:
    """Return the length of virtio's header (flags, GSO type … number of buffers), or 0."""
    plausible = len(data) > 26 and data[0] <= 7 and data[1] & 0x7F <= 5
    return 12 if plausible and data[10:12] in {b"\0\0", b"\1\0"} else 0


def _from_socket(fd: int, capture: Capture, stop: threading.Event) -> None:
    while not stop.is_set():
        if not select.select([fd], [], [], _POLL_SECONDS)[0]:
            continue
        data = os.read(fd, _LONGEST_FRAME)
        if data:
            capture.offer(Frame(time.time(), data, len(data)))


@contextmanager
def _reading(fd: int, source: Callable[[int, Capture, threading.Event], None]) -> Iterator[Capture]:
    """Take frames away in a thread of their own, so that whoever shows them may be slow."""
    capture, stop = Capture(), threading.Event()

    def read() -> None:
        try:
            source(fd, capture, stop)
        except (OSError, ProtocolError):
            pass  # the machine or the switch is gone, or QEMU writes what it should not
        finally:
            capture.end()

    thread = threading.Thread(target=read, name="capture", daemon=True)
    thread.start()
    try:
        yield capture
    finally:
        stop.set()
        thread.join()


@contextmanager
def capture_switch(context: Context, name: str) -> Iterator[Capture]:
    """Capture at a switch, which sends every frame to every port while the block lasts."""
    with switches.running(context, name) as (record, paths):
        sockets = switches.sockets_of(paths)
        own = paths.file(f"plug{os.getpid()}")
        frames, control = vde_port(sockets.control, own, port=0, text=PLUG, uid=record.uid)
    try:
        switch.flood(sockets, on=True)
        with _reading(frames, _from_socket) as capture:
            yield capture
    finally:
        with contextlib.suppress(WirtError):
            switch.flood(sockets, on=False)
        os.close(frames)
        os.close(control)
