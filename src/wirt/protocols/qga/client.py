"""A synchronous client of the QEMU guest agent: one command at a time, with deadlines.

::

    with AgentClient.connect(path, timeout=60) as agent:
        print(agent.osinfo().pretty_name)
        done = agent.exec("/bin/sh", ["-c", "echo hello"], timeout=10)
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, TypeVar

import msgspec

from wirt.errors import CommandRefused, GuestError, PeerClosed, ProtocolError, Timeout
from wirt.protocols.closing import Closing
from wirt.protocols.deadline import Deadline
from wirt.protocols.jsonlines import decode
from wirt.protocols.qga.codec import (
    DEFAULT_MAX_LINE,
    Failure,
    Message,
    QgaDecoder,
    encode_command,
    encode_sync,
)
from wirt.protocols.qga.messages import (
    AgentInfo,
    ExecStatus,
    FileChunk,
    HostName,
    NetworkInterface,
    OsInfo,
    ProcessId,
    User,
    WriteCount,
)
from wirt.protocols.unixsocket import UnixConnection
from wirt.units import KIB, MIB

T = TypeVar("T")

DEFAULT_TIMEOUT = 10.0
CHUNK = 1024 * KIB  # bytes of one guest-file-read
_MAX_EXEC_REPLY = 48 * MIB  # two streams of 16 MiB, and base64 makes 4 bytes of 3
_SYNC_BYTES = 6  # a JSON integer that survives every decoder
_FIRST_POLL, _LAST_POLL = 0.005, 0.25


class Nothing(msgspec.Struct, frozen=True):
    """The empty object that most commands return."""


class AgentClient(Closing):
    """A synchronised session with the agent. Not for use by two threads at once.

    Every call may raise Timeout, ProtocolError, PeerClosed or CommandRefused. After a
    Timeout the next call synchronises again, so that a late answer is never mistaken.
    """

    def __init__(self, connection: UnixConnection) -> None:
        self._connection = connection
        self._decoder = QgaDecoder()
        self._inbox: deque[Message] = deque()
        self._in_step = False

    @classmethod
    def connect(cls, path: str | os.PathLike[str], *, timeout: float) -> Self:
        """Connect, and wait up to ``timeout`` seconds for the agent to answer.

        The request is kept in the port until the guest opens it: connect while it boots.
        """
        deadline = Deadline.after(timeout)
        client = cls(UnixConnection.connect(path, deadline))
        try:
            client._synchronise(deadline)
        except BaseException:
            client.close()
            raise
        return client

    def _synchronise(self, deadline: Deadline) -> None:
        sync_id = int.from_bytes(os.urandom(_SYNC_BYTES))
        self._inbox.clear()
        self._decoder.expect_sync(sync_id)
        try:
            self._connection.send(encode_sync(sync_id), deadline)
            while not self._decoder.synchronised:
                self._receive(deadline)
        except Timeout:
            raise Timeout(
                "the guest agent did not answer in time",
                hint="the guest may still boot, be paused, or lack the package qemu-guest-agent",
            ) from None
        self._in_step = True

    def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        reply: type[T],
        timeout: float = DEFAULT_TIMEOUT,
        max_reply: int = DEFAULT_MAX_LINE,
    ) -> T:
        """Run an agent command and return its answer as ``reply``.

        An answer of more than ``max_reply`` bytes is a ProtocolError.
        """
        deadline = Deadline.after(timeout)
        self._send(command, arguments or {}, deadline)
        self._decoder.limit(max_reply)
        return self._answer(command, reply, deadline)

    def _send(self, command: str, arguments: Mapping[str, Any], deadline: Deadline) -> None:
        if not self._in_step:
            self._synchronise(deadline)
        self._in_step = False
        self._connection.send(encode_command(command, arguments), deadline)

    def _answer(self, command: str, reply: type[T], deadline: Deadline) -> T:
        try:
            while not self._inbox:
                self._receive(deadline)
        except Timeout:
            raise Timeout(f"the guest agent did not answer {command} in time") from None
        answer = self._inbox.popleft()
        self._in_step = not self._inbox
        if isinstance(answer, Failure):
            raise CommandRefused(command, answer.error_class, answer.description)
        return decode(answer.value, reply, f"the agent's answer to {command}")

    def _receive(self, deadline: Deadline) -> None:
        self._inbox.extend(self._decoder.feed(self._connection.receive(deadline)))

    def ping(self, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.execute("guest-ping", reply=Nothing, timeout=timeout)

    def info(self, *, timeout: float = DEFAULT_TIMEOUT) -> AgentInfo:
        return self.execute("guest-info", reply=AgentInfo, timeout=timeout)

    def osinfo(self, *, timeout: float = DEFAULT_TIMEOUT) -> OsInfo:
        return self.execute("guest-get-osinfo", reply=OsInfo, timeout=timeout)

    def host_name(self, *, timeout: float = DEFAULT_TIMEOUT) -> str:
        return self.execute("guest-get-host-name", reply=HostName, timeout=timeout).host_name

    def network_interfaces(self, *, timeout: float = DEFAULT_TIMEOUT) -> list[NetworkInterface]:
        return self.execute(
            "guest-network-get-interfaces", reply=list[NetworkInterface], timeout=timeout
        )

    def users(self, *, timeout: float = DEFAULT_TIMEOUT) -> list[User]:
        return self.execute("guest-get-users", reply=list[User], timeout=timeout)

    def set_time(self, seconds: float | None = None, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Set the guest's clock to seconds since 1970 (default: the host's time now)."""
        nanoseconds = time.time_ns() if seconds is None else int(seconds * 1e9)
        arguments = {"time": nanoseconds}
        self.execute("guest-set-time", arguments, reply=Nothing, timeout=timeout)

    def set_user_password(
        self, user: str, password: str, *, crypted: bool = False, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        """Set a password; ``crypted`` means it is a crypt(3) hash already."""
        encoded = password.encode()
        arguments = {"username": user, "password": encoded, "crypted": crypted}
        self.execute("guest-set-user-password", arguments, reply=Nothing, timeout=timeout)

    def add_ssh_keys(
        self,
        user: str,
        keys: Sequence[str],
        *,
        reset: bool = False,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        """Add public keys to the user's authorized_keys; ``reset`` removes the others."""
        arguments = {"username": user, "keys": list(keys), "reset": reset}
        self.execute("guest-ssh-add-authorized-keys", arguments, reply=Nothing, timeout=timeout)

    def freeze(self, *, timeout: float = DEFAULT_TIMEOUT) -> int:
        """Freeze the file systems; return how many. Until ``thaw`` the agent does little else."""
        return self.execute("guest-fsfreeze-freeze", reply=int, timeout=timeout)

    def thaw(self, *, timeout: float = DEFAULT_TIMEOUT) -> int:
        """Thaw the file systems; return how many were frozen."""
        return self.execute("guest-fsfreeze-thaw", reply=int, timeout=timeout)

    def freeze_status(self, *, timeout: float = DEFAULT_TIMEOUT) -> str:
        """Return ``thawed`` or ``frozen``."""
        return self.execute("guest-fsfreeze-status", reply=str, timeout=timeout)

    def shutdown(
        self,
        mode: Literal["powerdown", "reboot", "halt"] = "powerdown",
        *,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> bool:
        """Ask the guest to go down. Return whether the agent was still there afterwards.

        The agent answers only a refusal (CommandRefused), so a ping follows the request.
        An agent that goes down at once answers neither: False, after ``timeout`` seconds.
        """
        deadline = Deadline.after(timeout)
        self._send("guest-shutdown", {"mode": mode}, deadline)
        try:
            self._connection.send(encode_command("guest-ping", {}), deadline)
            self._answer("guest-shutdown", Nothing, deadline)
        except CommandRefused:
            self._in_step = False  # the answer to the ping is still to come
            raise
        except (Timeout, PeerClosed):
            return False
        return True

    def file_open(self, path: str, mode: str = "rb", *, timeout: float = DEFAULT_TIMEOUT) -> int:
        """Open a file in the guest (modes of fopen(3)); return the agent's handle."""
        arguments = {"path": path, "mode": mode}
        return self.execute("guest-file-open", arguments, reply=int, timeout=timeout)

    def file_read(
        self, handle: int, count: int = CHUNK, *, timeout: float = DEFAULT_TIMEOUT
    ) -> bytes:
        """Return up to ``count`` bytes from the handle's position; b"" at the end."""
        arguments = {"handle": handle, "count": count}
        chunk = self.execute(
            "guest-file-read",
            arguments,
            reply=FileChunk,
            timeout=timeout,
            max_reply=2 * count + KIB,
        )
        if len(chunk.data) > count or (not chunk.data and not chunk.eof):
            raise ProtocolError("the guest agent returned another count of bytes than asked for")
        return chunk.data

    def file_write(self, handle: int, data: bytes, *, timeout: float = DEFAULT_TIMEOUT) -> int:
        """Write ``data``; return how many bytes the guest took."""
        arguments = {"handle": handle, "buf-b64": data}
        return self.execute("guest-file-write", arguments, reply=WriteCount, timeout=timeout).count

    def file_close(self, handle: int, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        arguments = {"handle": handle}
        self.execute("guest-file-close", arguments, reply=Nothing, timeout=timeout)

    def exec(
        self,
        path: str,
        arguments: Sequence[str] = (),
        *,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        timeout: float,
    ) -> ExecStatus:
        """Run a program and return its exit and output (at most 16 MiB of each stream).

        ``env`` replaces the agent's environment. Raises GuestError when the guest cannot
        start it, and Timeout; the program then runs on, since the agent cannot kill.
        """
        deadline = Deadline.after(timeout)
        pid = self._start(path, arguments, env, stdin, deadline)
        pause = _FIRST_POLL
        while True:
            status = self.exec_status(pid, timeout=deadline.left())
            if status.exited:
                return status
            if not deadline.left():
                raise Timeout(f"{path} did not end in time; it runs on in the guest")
            time.sleep(min(pause, deadline.left()))
            pause = min(pause * 2, _LAST_POLL)

    def _start(
        self,
        path: str,
        arguments: Sequence[str],
        env: Mapping[str, str] | None,
        stdin: bytes,
        deadline: Deadline,
    ) -> int:
        request: dict[str, object] = {"path": path, "arg": list(arguments), "capture-output": True}
        if env is not None:
            request["env"] = [f"{name}={value}" for name, value in env.items()]
        if stdin:
            request["input-data"] = stdin
        try:
            reply = self.execute("guest-exec", request, reply=ProcessId, timeout=deadline.left())
        except CommandRefused as refusal:
            raise GuestError(f"cannot run {path}: {refusal.description}") from None
        return reply.pid

    def exec_status(self, pid: int, *, timeout: float = DEFAULT_TIMEOUT) -> ExecStatus:
        """Look at a program once; after it ``exited`` the agent forgets it."""
        return self.execute("guest-exec-status", {"pid": pid}, reply=ExecStatus, timeout=timeout)

    def close(self) -> None:
        self._connection.close()
