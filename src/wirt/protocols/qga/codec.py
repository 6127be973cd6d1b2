"""The protocol of the QEMU guest agent, without I/O: bytes in, messages out.

The agent (QEMU's ``docs/interop/qemu-ga``) reads and writes JSON objects, one on each
line, through a virtio-serial port that keeps what nobody has read: answers to an earlier
client may come first. So a session begins by a synchronisation: the host sends a byte
0xFF, which makes the agent drop what it has half read, and ``guest-sync-delimited`` with
a fresh id; the agent answers with a byte 0xFF and ``{"return": id}``. Everything before
that 0xFF is stale and thrown away unseen.

The guest is hostile: the outcome is messages or ProtocolError, in bounded memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from wirt.errors import ProtocolError
from wirt.protocols.jsonlines import LineBuffer, decode, encode_line
from wirt.units import MIB

SENTINEL = b"\xff"  # never part of UTF-8, so of JSON

DEFAULT_MAX_LINE = 4 * MIB  # decoded, many small objects take ten times as much
_MAX_SYNC_ANSWER = 1024


class Return(msgspec.Struct, frozen=True):
    """A command succeeded; ``value`` is JSON not looked into yet."""

    value: msgspec.Raw


class Failure(msgspec.Struct, frozen=True):
    """A command was refused."""

    error_class: str
    description: str


Message = Return | Failure


class _Error(msgspec.Struct):
    error_class: str = msgspec.field(name="class")
    desc: str


class _Line(msgspec.Struct):
    value: msgspec.Raw = msgspec.field(name="return", default=msgspec.Raw())
    error: _Error | None = None


class QgaDecoder:
    """Bytes to messages; silent until the synchronisation it was told of has come."""

    def __init__(self) -> None:
        self._lines = LineBuffer(DEFAULT_MAX_LINE)
        self._awaited: int | None = None
        self._unfinished = b""  # while synchronising: the last sentinel and what followed

    def expect_sync(self, sync_id: int) -> None:
        """Throw away everything up to the answer to ``encode_sync(sync_id)``."""
        self._awaited = sync_id
        self._unfinished = b""
        self._lines = LineBuffer(DEFAULT_MAX_LINE)

    def limit(self, max_line: int) -> None:
        """Refuse lines of more than ``max_line`` bytes from now on."""
        self._lines.max_line = max_line

    @property
    def synchronised(self) -> bool:
        return self._awaited is None

    def feed(self, data: bytes) -> list[Message]:
        if self._awaited is not None:
            data = self._synchronise(data, self._awaited)
        return [parse_message(line) for line in self._lines.feed(data)]

    def _synchronise(self, data: bytes, sync_id: int) -> bytes:
        """Return what follows the awaited answer; b"" until it has come."""
        pieces = (self._unfinished + data).split(SENTINEL)
        for index, piece in enumerate(pieces[1:], 2):
            line, _, rest = piece.partition(b"\n")
            if len(line) < len(piece) and _is_sync_answer(line, sync_id):
                self._awaited = None
                return SENTINEL.join([rest, *pieces[index:]])
        last = pieces[-1]
        candidate = len(pieces) > 1 and b"\n" not in last and len(last) <= _MAX_SYNC_ANSWER
        self._unfinished = SENTINEL + last if candidate else b""
        return b""


class _SyncAnswer(msgspec.Struct):
    value: int = msgspec.field(name="return")


def _is_sync_answer(line: bytes, sync_id: int) -> bool:
    try:
        return decode(line, _SyncAnswer, "a sync answer").value == sync_id
    except ProtocolError:
        return False


def parse_message(line: bytes) -> Message:
    """Return the message on one line. Raises ProtocolError."""
    parts = decode(line, _Line, "a message of the guest agent")
    has_value = memoryview(parts.value).nbytes > 0
    if has_value == (parts.error is not None):
        raise ProtocolError(f"neither a return nor an error of the guest agent: {line[:80]!r}")
    if parts.error is not None:
        return Failure(parts.error.error_class, parts.error.desc)
    return Return(parts.value.copy())


def encode_command(name: str, arguments: Mapping[str, Any]) -> bytes:
    command: dict[str, object] = {"execute": name}
    if arguments:
        command["arguments"] = arguments
    return encode_line(command)


def encode_sync(sync_id: int) -> bytes:
    return SENTINEL + encode_command("guest-sync-delimited", {"id": sync_id})
