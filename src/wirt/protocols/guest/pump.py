"""Carry the bytes of one running command between the helper and the host's streams."""

from __future__ import annotations

import os
import select
from collections import deque
from contextlib import suppress

from wirt.errors import GuestError, PeerClosed, ProtocolError, Timeout
from wirt.protocols.deadline import Deadline
from wirt.protocols.guest.codec import (
    STDIN_WINDOW,
    Frame,
    FrameType,
    GuestDecoder,
    encode_frame,
    encode_frames,
    parse_exit,
    parse_number,
)
from wirt.protocols.guest.messages import parse_text
from wirt.protocols.guest.streams import Input, Output
from wirt.protocols.unixsocket import UnixConnection
from wirt.units import KIB

_ENOUGH = 64 * KIB  # bytes for the guest that wait in memory before more input is read
_SOON = 5.0  # seconds: what poll said is there comes at once


class Controls:
    """Frames that a signal handler or another thread sends into a running command."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def fileno(self) -> int:
        return self._read_fd

    def put(self, frame: bytes) -> None:
        self._frames.append(frame)
        with suppress(BlockingIOError):  # full: it wakes the pump already
            os.write(self._write_fd, b"!")

    def take(self) -> bytes:
        with suppress(BlockingIOError):
            os.read(self._read_fd, 4096)
        taken = [self._frames.popleft() for _ in range(len(self._frames))]
        return b"".join(taken)

    def close(self) -> None:
        os.close(self._read_fd)
        os.close(self._write_fd)


class Pump:
    """One command from the request sent until its exit. Bounded memory on either side."""

    def __init__(
        self,
        connection: UnixConnection,
        decoder: GuestDecoder,
        controls: Controls,
        stdin: Input,
        outputs: dict[FrameType, Output],
    ) -> None:
        self._connection = connection
        self._decoder = decoder
        self._controls = controls
        self._stdin = stdin
        self._stdin_closed = False
        self._outputs = outputs
        self._outbox = bytearray()
        self._credit = STDIN_WINDOW
        self._started = False
        self._exit: int | None = None

    def run(self, start: Deadline, end: Deadline | None) -> int:
        """Return the exit code. ``start`` is for the command to begin, ``end`` to be over."""
        while self._exit is None or self._waiting():
            ready = self._wait(start, end)
            if self._controls.fileno() in ready:
                self._outbox += self._controls.take()
            for output in self._waiting():
                output.flush()
            if self._wants_input() and (self._stdin.is_ready or self._stdin.fd in ready):
                self._read_input()
            if self._outbox:
                del self._outbox[: self._connection.send_some(self._outbox)]
            if ready.get(self._connection.fileno(), 0) & ~select.POLLOUT:
                for frame in self._decoder.feed(self._connection.receive(Deadline.after(_SOON))):
                    self._handle(frame)
        return self._exit

    def _waiting(self) -> list[Output]:
        return [output for output in self._outputs.values() if output.is_waiting]

    def _wants_input(self) -> bool:
        return (
            self._exit is None
            and not self._stdin_closed
            and self._credit > 0
            and len(self._outbox) < _ENOUGH
        )

    def _wait(self, start: Deadline, end: Deadline | None) -> dict[int, int]:
        poll = select.poll()
        poll.register(self._controls, select.POLLIN)
        waiting = self._waiting()
        for output in waiting:
            poll.register(output.fd, select.POLLOUT)
        # While an output waits nothing more is read, so that memory stays bounded.
        wanted = 0 if waiting else select.POLLIN
        if self._outbox:
            wanted |= select.POLLOUT
        if wanted and self._exit is None:
            poll.register(self._connection, wanted)
        if self._wants_input() and not self._stdin.is_ready:
            poll.register(self._stdin.fd, select.POLLIN)
        return dict(poll.poll(self._milliseconds(start, end)))

    def _milliseconds(self, start: Deadline, end: Deadline | None) -> float | None:
        if end is not None and not end.left():
            raise Timeout("the command did not end in time, and was killed")
        if not self._started and not start.left():
            raise Timeout(
                "the guest's helper did not start the command in time",
                hint="the guest may be paused or overloaded",
            )
        if self._wants_input() and self._stdin.is_ready:
            return 0
        left = [deadline.left() for deadline in (end, None if self._started else start) if deadline]
        return max(min(left) * 1000, 1) if left else None

    def _read_input(self) -> None:
        data = self._stdin.read(self._credit)
        self._credit -= len(data)
        self._outbox += encode_frames(FrameType.STDIN, data)
        if self._stdin.ended:
            self._stdin_closed = True
            self._outbox += encode_frame(FrameType.STDIN_EOF)

    def _handle(self, frame: Frame) -> None:
        if frame.kind is FrameType.RESET:
            raise PeerClosed("the guest's helper restarted while the command ran")
        if self._exit is not None:
            raise ProtocolError(f"the guest sent {frame.kind.name} after the command's exit")
        if frame.kind is FrameType.ERROR:
            raise GuestError(parse_text(frame.payload))
        if frame.kind is FrameType.STARTED:
            self._started = True
        elif frame.kind in self._outputs:
            self._outputs[frame.kind].write(frame.payload)
        elif frame.kind is FrameType.STDIN_ACK:
            self._credit += parse_number(frame)
            if self._credit > STDIN_WINDOW:
                raise ProtocolError("the guest acknowledged more input than it was sent")
        elif frame.kind is FrameType.EXIT:
            self._exit = parse_exit(frame)
        else:
            raise ProtocolError(f"the guest sent {frame.kind.name} while a command ran")
