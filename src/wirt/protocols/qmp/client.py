"""A synchronous QMP client: one command at a time, each with a deadline.

::

    with QmpClient.connect(path, timeout=5) as qmp, qmp.events("STOP") as stops:
        qmp.execute("stop")
        stops.get(timeout=5)
        status = qmp.execute("query-status", reply=StatusInfo)

QEMU serves one client for each QMP socket: hold a client briefly.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self, TypeVar, overload

import msgspec

from wirt.errors import CommandRefused, PeerClosed, ProtocolError, Timeout
from wirt.protocols.closing import Closing
from wirt.protocols.deadline import Deadline
from wirt.protocols.jsonlines import decode
from wirt.protocols.qmp.codec import (
    DEFAULT_MAX_LINE,
    Event,
    Failure,
    Greeting,
    Message,
    QmpDecoder,
    Return,
    encode_command,
)
from wirt.protocols.qmp.events import EventQueue
from wirt.protocols.unixsocket import UnixConnection

T = TypeVar("T")
Arguments = Mapping[str, Any] | msgspec.Struct

DEFAULT_TIMEOUT = 30.0


class Nothing(msgspec.Struct, frozen=True):
    """The empty object that most commands return."""


class Subscription:
    """Events that arrive while the ``with`` block of ``QmpClient.events`` lasts."""

    def __init__(self, client: QmpClient, queue: EventQueue) -> None:
        self._client = client
        self._queue = queue

    def get(self, timeout: float) -> Event:
        """Return the oldest event not taken yet. Raises Timeout after ``timeout`` seconds."""
        return self._client.next_event(self._queue, (), Deadline.after(timeout))

    @property
    def dropped(self) -> int:
        """Events lost because more came than memory is granted for."""
        return self._queue.dropped


class QmpClient(Closing):
    """A negotiated QMP connection. Not for use by two threads at once.

    Every call may raise ProtocolError, PeerClosed or Timeout. After a Timeout the client
    can be used on: a late answer to the abandoned command is recognised and dropped.
    """

    def __init__(self, connection: UnixConnection, max_line: int = DEFAULT_MAX_LINE) -> None:
        self._connection = connection
        self._decoder = QmpDecoder(max_line)
        self._inbox: deque[Message] = deque()
        self._last_id = 0
        self._all_events = EventQueue()
        self._queues = [self._all_events]
        self.greeting: Greeting

    @classmethod
    def connect(
        cls, path: str | os.PathLike[str], *, timeout: float, max_line: int = DEFAULT_MAX_LINE
    ) -> Self:
        """Connect and negotiate within ``timeout`` seconds."""
        deadline = Deadline.after(timeout)
        client = cls(UnixConnection.connect(path, deadline), max_line)
        return client._negotiated(deadline)

    @classmethod
    def from_socket(
        cls, sock: socket.socket, *, timeout: float, max_line: int = DEFAULT_MAX_LINE
    ) -> Self:
        """Negotiate on a connected socket, which the client then owns."""
        client = cls(UnixConnection(sock, "QMP socket"), max_line)
        return client._negotiated(Deadline.after(timeout))

    def _negotiated(self, deadline: Deadline) -> Self:
        try:
            self.greeting = self._await_greeting(deadline)
            self._execute("qmp_capabilities", None, Nothing, deadline, ())
        except BaseException:
            self.close()
            raise
        return self

    def _await_greeting(self, deadline: Deadline) -> Greeting:
        try:
            message = self._next_message(deadline)
        except Timeout:
            raise Timeout(
                f"{self._connection.name}: connected, but no QMP greeting came",
                hint="QEMU serves one QMP client at a time, and another one holds the socket; "
                "or QEMU is stopped or overloaded",
            ) from None
        if not isinstance(message, Greeting):
            raise ProtocolError(f"{self._connection.name}: the peer did not greet as QMP does")
        return message

    @overload
    def execute(
        self,
        command: str,
        arguments: Arguments | None = None,
        *,
        reply: None = None,
        timeout: float = DEFAULT_TIMEOUT,
        fds: Sequence[int] = (),
    ) -> None: ...

    @overload
    def execute(
        self,
        command: str,
        arguments: Arguments | None = None,
        *,
        reply: type[T],
        timeout: float = DEFAULT_TIMEOUT,
        fds: Sequence[int] = (),
    ) -> T: ...

    def execute(
        self,
        command: str,
        arguments: Arguments | None = None,
        *,
        reply: type[T] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        fds: Sequence[int] = (),
    ) -> T | None:
        """Run ``command`` and return its answer as ``reply``; without one, expect ``{}``.

        ``fds`` travel with the command (SCM_RIGHTS). Raises CommandRefused with QEMU's
        error class and description.
        """
        deadline = Deadline.after(timeout)
        if reply is None:
            self._execute(command, arguments, Nothing, deadline, fds)
            return None
        return self._execute(command, arguments, reply, deadline, fds)

    def _execute(
        self,
        command: str,
        arguments: Arguments | None,
        reply: type[T],
        deadline: Deadline,
        fds: Sequence[int],
    ) -> T:
        self._last_id += 1
        self._connection.send(encode_command(command, arguments, self._last_id), deadline, fds=fds)
        while True:
            answer = self._await_answer(command, deadline)
            if isinstance(answer, Failure) and answer.id in {None, self._last_id}:
                raise CommandRefused(command, answer.error_class, answer.description)
            if isinstance(answer, Return) and answer.id == self._last_id:
                return decode(answer.value, reply, f"the answer to {command}")
            if not isinstance(answer.id, int) or not 0 < answer.id < self._last_id:
                raise ProtocolError(f"an answer to no command of ours: id {answer.id!r}")
            # Else a late answer to a command that we gave up waiting for.

    def _await_answer(self, command: str, deadline: Deadline) -> Return | Failure:
        while True:
            try:
                message = self._next_message(deadline)
            except Timeout:
                raise Timeout(f"QEMU did not answer {command} in time") from None
            if isinstance(message, Return | Failure):
                return message
            self._sort_in(message)

    def send_fd(self, name: str, fd: int, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Give QEMU a duplicate of ``fd`` under ``name`` (``getfd``), replacing an old one."""
        self.execute("getfd", {"fdname": name}, fds=[fd], timeout=timeout)

    def peer_pid(self) -> int:
        """Process id of the process that listens on the socket (SO_PEERCRED).

        For a socket that wirt bound and passed to QEMU this is wirt's process, not QEMU.
        """
        return self._connection.peer_pid()

    def wait_event(self, names: Collection[str], *, timeout: float) -> Event:
        """Return the next event of ``names``, also one that came since connecting.

        Each event is returned once; others stay. ``timeout=0`` looks only at what has come.
        """
        return self.next_event(self._all_events, names, Deadline.after(timeout))

    @contextmanager
    def events(self, *names: str) -> Iterator[Subscription]:
        """Collect events of ``names`` (all, if none) from now on: subscribe, then act."""
        queue = EventQueue(names)
        self._queues.append(queue)
        try:
            yield Subscription(self, queue)
        finally:
            self._queues.remove(queue)

    def next_event(self, queue: EventQueue, names: Collection[str], deadline: Deadline) -> Event:
        """Take an event from ``queue``, which belongs to this client, reading on as needed."""
        while (event := queue.take(names)) is None:
            try:
                self._sort_in(self._next_message(deadline))
            except Timeout:
                wanted = ", ".join(names) or "any"
                raise Timeout(f"QEMU did not send the event ({wanted}) in time") from None
        return event

    def _sort_in(self, message: Message) -> None:
        if isinstance(message, Event):
            for queue in self._queues:
                queue.offer(message)
        elif isinstance(message, Greeting):
            raise ProtocolError("QEMU greeted twice")
        # Else a late answer to a command that we gave up waiting for.

    def _next_message(self, deadline: Deadline) -> Message:
        while not self._inbox:
            try:
                self._inbox.extend(self._decoder.feed(self._connection.receive(deadline)))
            except PeerClosed as error:
                if not self._decoder.pending:
                    raise
                raise PeerClosed(f"{error.message} in the middle of a message") from None
            except ProtocolError:
                self.close()  # nobody can know where the next message begins
                raise
        return self._inbox.popleft()

    def fileno(self) -> int:
        """For select/poll: readable when ``wait_event(…, timeout=0)`` may find something."""
        return self._connection.fileno()

    def close(self) -> None:
        self._connection.close()
