"""What must not be interrupted while it is imported, and how all is imported quickly."""

from __future__ import annotations

import gc
import signal
import sys


def load_msgspec() -> None:
    """Import msgspec, and let Ctrl-C wait for that.

    It takes an interrupt in the middle for success, forgets it, and crashes when it is used.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    # Where it is installed, msgspec takes what Python has by itself from it, for 5-9 ms.
    absent = "typing_extensions" not in sys.modules
    try:
        if absent:
            sys.modules["typing_extensions"] = None  # type: ignore[assignment]
        import msgspec  # noqa: F401 - so that nobody else is the first
    finally:
        if absent:
            del sys.modules["typing_extensions"]
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def collect_rarely() -> None:
    """Look for cycles in garbage later than Python does: imports make much, but no garbage."""
    gc.set_threshold(50_000)
