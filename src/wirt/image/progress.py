"""How long operations say how far they are."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all), often; it must be quick."""


def silent(done: int, total: int) -> None:
    """Say nothing."""
