"""As many forks in their first moments as the host has processors.

A guest under TCG that is starved of its processor burns more of it, so that twenty forks at
once take three times as long as two at a time. The places are files; a lock on one dies with
its holder.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from wirt.errors import Timeout
from wirt.store.layout import Home, private_directory
from wirt.store.locks import try_lock

_POLL_SECONDS = 0.01
_LONGEST_SECONDS = 600.0


@contextmanager
def admitted(home: Home) -> Iterator[None]:
    """Hold one of the host's places for the first moments of a fork. Raises Timeout."""
    private_directory(home.admission)
    lock = _take(home.admission, os.cpu_count() or 1)
    try:
        yield
    finally:
        os.close(lock)


def _take(directory: str, places: int) -> int:
    deadline = time.monotonic() + _LONGEST_SECONDS
    while time.monotonic() < deadline:
        for place in range(places):
            lock = try_lock(os.path.join(directory, f"{place}.lock"))
            if lock is not None:
                return lock
        time.sleep(_POLL_SECONDS)
    raise Timeout(
        "other forks have kept all processors of this host busy",
        hint=f"see which: fuser {directory}/*.lock",
    )
