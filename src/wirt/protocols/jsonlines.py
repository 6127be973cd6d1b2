"""JSON objects, one on each line: what QMP and the guest agent both speak.

No I/O here. Whatever bytes are fed, the outcome is lines, values or ProtocolError.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from wirt import typed_json
from wirt.errors import ProtocolError

T = TypeVar("T")

_SHOWN = 80  # bytes of a foreign line quoted in a message


class LineBuffer:
    """Cut a stream into lines of at most ``max_line`` bytes.

    Holds one unfinished line: ``max_line`` bytes, and once more while it is handed out.
    """

    def __init__(self, max_line: int) -> None:
        self.max_line = max_line
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that ``data`` completes, without their end; skip empty ones."""
        lines = []
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            self._append(data[start:end])
            start = end + 1
            line = bytes(self._pending)
            self._pending = bytearray()
            if line and not line.isspace():
                lines.append(line)
        self._append(data[start:])
        return lines

    def __len__(self) -> int:
        return len(self._pending)

    def _append(self, data: bytes) -> None:
        if len(self._pending) + len(data) > self.max_line:
            self._pending = bytearray()
            raise ProtocolError(f"the peer sent a line of more than {self.max_line} bytes")
        self._pending += data


def decode(data: bytes | msgspec.Raw, kind: type[T], what: str) -> T:
    """Return the JSON in ``data`` as ``kind``. Raises ProtocolError naming ``what``.

    Deep nesting, broken UTF-8 and numbers beyond 64 bits are refused like any garbage.
    """
    try:
        return typed_json.decode(data, kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        shown = bytes(data)[:_SHOWN]
        raise ProtocolError(f"{what} is not what it should be: {error} (in {shown!r})") from None


def encode_line(message: object) -> bytes:
    """Return ``message`` as one line of JSON."""
    return msgspec.json.encode(message) + b"\n"
