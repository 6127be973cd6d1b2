"""QMP messages, without I/O: bytes in, messages out.

QMP (QEMU's ``docs/interop/qmp-spec``) is one JSON object on each line. The server opens
with a greeting ``{"QMP": {"version": …, "capabilities": […]}}``, answers each command
``{"execute": …, "arguments": …, "id": …}`` with ``{"return": …, "id": …}`` or
``{"error": {"class": …, "desc": …}, "id": …}``, and may send an event
``{"event": …, "data": …, "timestamp": {"seconds": …, "microseconds": …}}`` at any time.

Whatever bytes are fed, the outcome is messages or ProtocolError, nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from wirt.errors import ProtocolError
from wirt.protocols.jsonlines import LineBuffer, decode, encode_line
from wirt.units import MIB

T = TypeVar("T")

DEFAULT_MAX_LINE = 64 * MIB


class QemuVersion(msgspec.Struct, frozen=True):
    major: int
    minor: int
    micro: int


class VersionInfo(msgspec.Struct, frozen=True):
    """Answer of ``query-version``, and part of the greeting."""

    qemu: QemuVersion
    package: str = ""


class Greeting(msgspec.Struct, frozen=True):
    version: VersionInfo
    capabilities: list[str]


class Return(msgspec.Struct, frozen=True):
    """A command succeeded; ``value`` is JSON not looked into yet."""

    id: int | str | None
    value: msgspec.Raw


class Failure(msgspec.Struct, frozen=True):
    """A command was refused. Without an id, QEMU could not even parse it."""

    id: int | str | None
    error_class: str
    description: str


class Event(msgspec.Struct, frozen=True):
    """Something happened; the time is QEMU's wall clock (-1 if it could not be read)."""

    name: str
    data: msgspec.Raw
    seconds: int
    microseconds: int

    def data_as(self, kind: type[T]) -> T:
        """Return the event's data as ``kind``. Raises ProtocolError if it is not that."""
        return decode(self.data, kind, f"the data of event {self.name}")


Message = Greeting | Return | Failure | Event


class _Error(msgspec.Struct):
    error_class: str = msgspec.field(name="class")
    desc: str


class _Timestamp(msgspec.Struct):
    seconds: int
    microseconds: int


class _Line(msgspec.Struct):
    greeting: Greeting | None = msgspec.field(name="QMP", default=None)
    value: msgspec.Raw = msgspec.field(name="return", default=msgspec.Raw())
    error: _Error | None = None
    event: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"{}")
    timestamp: _Timestamp = msgspec.field(default_factory=lambda: _Timestamp(-1, -1))
    id: int | str | None = None


class QmpDecoder:
    """Bytes to messages. Memory is bounded by ``max_line`` bytes and its decoded form."""

    def __init__(self, max_line: int = DEFAULT_MAX_LINE) -> None:
        self._lines = LineBuffer(max_line)

    def feed(self, data: bytes) -> list[Message]:
        return [parse_message(line) for line in self._lines.feed(data)]

    @property
    def pending(self) -> int:
        """Bytes of a message whose end has not come yet."""
        return len(self._lines)


def parse_message(line: bytes) -> Message:
    """Return the message on one line. Raises ProtocolError."""
    parts = decode(line, _Line, "a QMP message")
    messages: list[Message] = []
    if parts.greeting is not None:
        messages.append(parts.greeting)
    if memoryview(parts.value).nbytes:
        # A copy: a Raw that points into the line would keep all of it alive.
        messages.append(Return(parts.id, parts.value.copy()))
    if parts.error is not None:
        messages.append(Failure(parts.id, parts.error.error_class, parts.error.desc))
    if parts.event is not None:
        when = parts.timestamp
        messages.append(Event(parts.event, parts.data.copy(), when.seconds, when.microseconds))
    if len(messages) != 1:
        raise ProtocolError(f"a QMP message is of {len(messages)} kinds: {line[:80]!r}")
    return messages[0]


def encode_command(
    name: str, arguments: Mapping[str, Any] | msgspec.Struct | None, id_: int
) -> bytes:
    command: dict[str, object] = {"execute": name, "id": id_}
    if arguments is not None:
        command["arguments"] = arguments
    return encode_line(command)
