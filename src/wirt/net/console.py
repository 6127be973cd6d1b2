"""The management sockets of vde_switch and wirefilter: a line in, text out, then a code.

::

    0000 DATA END WITH '.'        only if data follow
    …data…
    .
    1000 Success                  1000: done; 1000 + errno: refused
    vde$ _                        the prompt, without a newline
"""

from __future__ import annotations

import os
import re

from wirt.errors import CommandRefused, ProtocolError
from wirt.protocols.closing import Closing
from wirt.protocols.deadline import Deadline
from wirt.protocols.unixsocket import UnixConnection

MAX_REPLY = 1 << 20
_DONE = 1000
_PROMPT = re.compile(rb"(?:^|\n)(?:vde|VDEwf)\$ $")
_CODE = re.compile(r"^(\d{4}) (.*)$")


def parse_reply(command: str, data: bytes) -> list[str]:
    """Return the lines of data. Raises CommandRefused, ProtocolError."""
    lines = data.decode("ascii", "replace").splitlines()
    codes = [match for line in lines[-4:] if (match := _CODE.match(line))]
    if not codes:
        raise ProtocolError(f"no code in the answer to {command!r}")
    code = int(codes[-1][1])
    if code != _DONE:
        reason = os.strerror(code - _DONE) if code > _DONE else codes[-1][2]
        raise CommandRefused(command, str(code), reason)
    if lines[0].startswith("0000 "):
        end = len(lines) - 1 - lines[::-1].index(".") if "." in lines else len(lines)
        return lines[1:end]
    return []


class Console(Closing):
    """A connection to a management socket; commands are single lines."""

    def __init__(self, path: str, *, timeout: float = 10.0) -> None:
        """Raises PeerClosed if nobody listens, Timeout, ProtocolError."""
        self._timeout = timeout
        deadline = Deadline.after(timeout)
        self._connection = UnixConnection.connect(path, deadline)
        try:
            self._read(deadline)
        except BaseException:
            self.close()
            raise

    def ask(self, command: str) -> list[str]:
        """Run a command and return its data. Raises CommandRefused, ProtocolError, Timeout."""
        if "\n" in command:
            raise ProtocolError(f"{command!r} is not one line")
        deadline = Deadline.after(self._timeout)
        self._connection.send(command.encode() + b"\n", deadline)
        return parse_reply(command, self._read(deadline))

    def _read(self, deadline: Deadline) -> bytes:
        data = b""
        while not _PROMPT.search(data[-16:]):
            data += self._connection.receive(deadline)
            if len(data) > MAX_REPLY:
                raise ProtocolError("an answer without end")
        return data

    def close(self) -> None:
        self._connection.close()
