"""A point on the monotonic clock that a whole conversation shares.

A peer that drips one byte a second does not extend it, as it would a timeout for each read.
"""

from __future__ import annotations

import time

import msgspec

_SHORTEST = 0.001  # a timeout of 0 still looks once at what has already arrived


class Deadline(msgspec.Struct, frozen=True):
    """``at`` is in seconds of time.monotonic()."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(time.monotonic() + max(seconds, _SHORTEST))

    def left(self) -> float:
        """Seconds that remain; 0.0 when the deadline has passed."""
        return max(self.at - time.monotonic(), 0.0)

    def sooner(self, seconds: float) -> Deadline:
        """Return this deadline, or one ``seconds`` from now if that comes first."""
        return Deadline(min(self.at, time.monotonic() + seconds))
