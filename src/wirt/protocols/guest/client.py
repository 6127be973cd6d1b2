"""A synchronous client of wirt's resident guest helper.

::

    with GuestSession.connect(path, timeout=60) as guest:
        code = guest.exec(["make", "test"], stdout=1, stderr=2, cwd="/src", timeout=600)

A port serves one client at a time, and a client one command at a time. Closing the session
kills what still runs.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Self

from wirt.errors import GuestError, PeerClosed, ProtocolError, Timeout, UsageError
from wirt.protocols.closing import Closing
from wirt.protocols.deadline import Deadline
from wirt.protocols.guest.codec import (
    Frame,
    FrameType,
    GuestDecoder,
    encode_frame,
    encode_hello,
    encode_request,
    parse_strings,
)
from wirt.protocols.guest.messages import (
    GuestInfo,
    Identity,
    IdentityAnswer,
    parse_identity,
    parse_info,
    parse_text,
)
from wirt.protocols.guest.pump import Controls, Pump
from wirt.protocols.guest.streams import Input, Output, Sink, Source
from wirt.protocols.unixsocket import UnixConnection

DEFAULT_TIMEOUT = 10.0
START_TIMEOUT = 30.0


class GuestSession(Closing):
    """A session with the helper. Not for use by two threads at once, but for ``resize``
    and ``send_signal``, which signal handlers and other threads may call during ``exec``.

    Every call may raise Timeout, ProtocolError or PeerClosed; then the session is over.
    """

    def __init__(self, connection: UnixConnection) -> None:
        self._connection = connection
        self._decoder = GuestDecoder()
        self._controls = Controls()

    @classmethod
    def connect(cls, path: str | os.PathLike[str], *, timeout: float) -> Self:
        """Connect, and wait up to ``timeout`` seconds for the helper to answer.

        The greeting is kept in the port until the guest opens it: connect while it boots.
        """
        deadline = Deadline.after(timeout)
        session = cls.open(path, timeout=timeout)
        session.greet(deadline.left())
        return session

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, timeout: float) -> Self:
        """Connect and send the greeting, without waiting for an answer.

        So a request can be laid before a paused guest, which reads it first when it runs.
        """
        deadline = Deadline.after(timeout)
        return cls._opened(UnixConnection.connect(path, deadline), deadline)

    @classmethod
    def from_socket(cls, sock: socket.socket, *, timeout: float) -> Self:
        """Greet on a connected socket, which the session then owns."""
        deadline = Deadline.after(timeout)
        session = cls._opened(UnixConnection(sock, "guest helper"), deadline)
        session.greet(deadline.left())
        return session

    @classmethod
    def _opened(cls, connection: UnixConnection, deadline: Deadline) -> Self:
        session = cls(connection)
        session._send(encode_hello(session._decoder.nonce), deadline)
        return session

    def greet(self, timeout: float) -> None:
        """Wait for the helper's answer to the greeting."""
        deadline = Deadline.after(timeout)
        try:
            while self._decoder.peer_version is None:
                _expect_silence(self._decoder.feed(self._connection.receive(deadline)))
        except Timeout:
            self.close()
            raise Timeout(
                "the guest's helper did not answer in time",
                hint="the guest may still boot, be paused, or lack the helper; "
                "a port also serves only one client at a time",
            ) from None
        except BaseException:
            self.close()
            raise

    def exec(
        self,
        argv: Sequence[str | bytes],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: Source = None,
        stdout: Sink = None,
        stderr: Sink = None,
        timeout: float | None = None,
        start_timeout: float = START_TIMEOUT,
        pty_size: tuple[int, int] | None = None,
    ) -> int:
        """Run a command and return its exit code: 128 and the number if a signal ended it,
        127 if it does not exist, 126 if it cannot be executed (both with words on stderr).

        ``env`` adds to a plain root environment. ``stdin`` is a descriptor, bytes or
        nothing; ``stdout`` and ``stderr`` are descriptors, functions of bytes, or None to
        drop. With ``pty_size`` (rows, columns) the command has a terminal, and all its
        output comes on ``stdout``; the end of ``stdin`` is typed as control-D.

        Raises GuestError if the guest cannot start it (no such directory or user),
        HostError if an output cannot be written, Timeout after ``timeout`` seconds (the
        command is killed) or if it does not begin within ``start_timeout``.
        """
        start = Deadline.after(start_timeout)
        end = None if timeout is None else Deadline.after(timeout)
        request = encode_request(_exec_fields(argv, env or {}, cwd, user, pty_size))
        outputs = {FrameType.STDOUT: Output(stdout), FrameType.STDERR: Output(stderr)}
        pump = Pump(self._connection, self._decoder, self._controls, Input(stdin), outputs)
        try:
            self._controls.take()  # meant for an earlier command
            self._connection.send(request, start)
            return pump.run(start, end)
        except GuestError:
            raise
        except BaseException:
            self.close()
            raise

    def resize(self, rows: int, columns: int) -> None:
        """Tell the command's terminal its new size."""
        size = struct.pack(">HH", rows, columns)
        self._controls.put(encode_frame(FrameType.WINDOW_SIZE, size))

    def send_signal(self, number: int) -> None:
        """Send a signal to the command's process group."""
        self._controls.put(encode_frame(FrameType.SIGNAL, bytes([number])))

    def info(self, *, timeout: float = DEFAULT_TIMEOUT) -> GuestInfo:
        """Ask what the guest is."""
        deadline = Deadline.after(timeout)
        self._send(encode_request([b"info"]), deadline)
        return parse_info(self._reply(deadline))

    def send_identity(self, identity: Identity, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Lay a request for a new identity before the guest; see ``identity_answer``."""
        request = encode_request([b"identity", *identity.fields()])
        self._send(request, Deadline.after(timeout))

    def identity_answer(self, *, timeout: float = DEFAULT_TIMEOUT) -> IdentityAnswer:
        """Wait for what became of ``send_identity``."""
        return parse_identity(self._reply(Deadline.after(timeout)))

    def set_identity(
        self, identity: Identity, *, timeout: float = DEFAULT_TIMEOUT
    ) -> IdentityAnswer:
        """Give the guest another identity; look at ``failed`` of the answer."""
        self.send_identity(identity, timeout=timeout)
        return self.identity_answer(timeout=timeout)

    def _send(self, data: bytes, deadline: Deadline) -> None:
        try:
            self._connection.send(data, deadline)
        except BaseException:
            self.close()
            raise

    def _reply(self, deadline: Deadline) -> list[bytes]:
        try:
            while not (frames := self._decoder.feed(self._connection.receive(deadline))):
                pass
            return _only_reply(frames)
        except GuestError:
            raise
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the session; a command that still runs is killed in the guest."""
        if self._connection.fileno() >= 0:
            self._connection.close()
            self._controls.close()


def _exec_fields(
    argv: Sequence[str | bytes],
    env: Mapping[str, str],
    cwd: str | None,
    user: str | None,
    pty_size: tuple[int, int] | None,
) -> list[bytes]:
    """Each field is a letter and a value: see the reference of the guest helper."""
    fields = [b"a" + os.fsencode(argument) for argument in argv]
    fields += [b"e" + os.fsencode(f"{name}={value}") for name, value in env.items()]
    if cwd is not None:
        fields.append(b"c" + os.fsencode(cwd))
    if user is not None:
        fields.append(b"u" + os.fsencode(user))
    if pty_size is not None:
        fields.append(b"t%d %d" % pty_size)
    if any(b"\0" in field for field in fields):
        raise UsageError("a command, its environment and its directory cannot hold a zero byte")
    return [b"exec", *fields]


def _expect_silence(frames: list[Frame]) -> None:
    if frames:
        kind = frames[0].kind.name
        raise ProtocolError(f"the guest's helper sent {kind} before it was asked")


def _only_reply(frames: list[Frame]) -> list[bytes]:
    first = frames[0]
    if first.kind is FrameType.RESET:
        raise PeerClosed("the guest's helper restarted")
    if len(frames) > 1 or first.kind not in {FrameType.REPLY, FrameType.ERROR}:
        raise ProtocolError(f"the guest sent {first.kind.name} instead of a reply")
    if first.kind is FrameType.ERROR:
        raise GuestError(parse_text(first.payload))
    return parse_strings(first.payload)
