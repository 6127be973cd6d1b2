"""Events that wait to be looked at, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from wirt.protocols.qmp.codec import Event
from wirt.units import MIB

MAX_EVENTS = 4096
MAX_BYTES = 4 * MIB


class EventQueue:
    """Events of the given names (all, if none is given), oldest first.

    Beyond 4096 events or 4 MiB of data the oldest are dropped, and counted in ``dropped``.
    """

    def __init__(self, names: Collection[str] = ()) -> None:
        self._names = frozenset(names)
        self._events: deque[Event] = deque()
        self._bytes = 0
        self.dropped = 0

    def offer(self, event: Event) -> None:
        """Take the event if it is one of ours."""
        if self._names and event.name not in self._names:
            return
        self._events.append(event)
        self._bytes += _size(event)
        while len(self._events) > MAX_EVENTS or self._bytes > MAX_BYTES:
            self._bytes -= _size(self._events.popleft())
            self.dropped += 1

    def take(self, names: Collection[str] = ()) -> Event | None:
        """Remove and return the oldest event (of ``names``), or None."""
        for index, event in enumerate(self._events):
            if not names or event.name in names:
                del self._events[index]
                self._bytes -= _size(event)
                return event
        return None


def _size(event: Event) -> int:
    return len(event.name) + memoryview(event.data).nbytes
