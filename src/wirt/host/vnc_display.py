"""A VNC display that nobody else gets, until QEMU serves it.

A port that is bound without SO_REUSEADDR is nobody else's. Set afterwards, the option lets one
who sets it too listen there, as QEMU does; who looks for a free display does not. QEMU inherits
the socket, though it does not know it: there is no moment in which the display is nobody's.
"""

from __future__ import annotations

import socket

from wirt.errors import Busy

_FIRST_PORT = 5900
_DISPLAYS = 100


class FreeDisplay:
    """The first free display of 127.0.0.1, chosen and reserved when its number is asked for."""

    def __init__(self) -> None:
        self._number = 0
        self._socket: socket.socket | None = None

    def number(self) -> int:
        """Return its number. Raises Busy."""
        if self._socket is None:
            self._number, self._socket = _reserve()
        return self._number

    def hand_on(self) -> None:
        """Let the program inherit it, if it was asked for, that this process becomes."""
        if self._socket is not None:
            self._socket.set_inheritable(True)

    def release(self) -> None:
        if self._socket is not None:
            self._socket.close()


def _reserve() -> tuple[int, socket.socket]:
    for number in range(_DISPLAYS):
        one = socket.socket()
        try:
            one.bind(("127.0.0.1", _FIRST_PORT + number))
        except OSError:
            one.close()
            continue
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return number, one
    raise Busy(
        f"all {_DISPLAYS} VNC displays of 127.0.0.1 are taken",
        hint="say where the screen is to be: -vnc unix:PATH, or -nographic",
    )
