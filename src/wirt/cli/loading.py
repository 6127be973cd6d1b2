"""What must not be interrupted while it is imported."""

from __future__ import annotations

import signal


def load_msgspec() -> None:
    """Import msgspec, and let Ctrl-C wait for that.

    It takes an interrupt in the middle for success, forgets it, and crashes when it is used.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        import msgspec  # noqa: F401 - so that nobody else is the first
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
