"""A session with wirt's helper in a guest: on whichever of its ports is free."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from wirt.errors import Busy
from wirt.protocols.closing import Closing
from wirt.protocols.guest.client import GuestSession
from wirt.store.layout import VmPaths
from wirt.store.locks import try_lock
from wirt.vm.channels import HELPERS

_POLL_SECONDS = 0.05
_OPEN_SECONDS = 10.0


class HelperPort(Closing):
    """A port of the helper that is ours, and the session on it."""

    def __init__(self, session: GuestSession, lock: int) -> None:
        self.session = session
        self._lock = lock

    @classmethod
    def open(cls, paths: VmPaths) -> Self:
        """Take the first port of a guest that does not run yet; it is greeted, not awaited.

        Raises Busy, PeerClosed, Timeout.
        """
        lock = try_lock(paths.guest_lock(0))
        if lock is None:
            raise Busy(
                f"another command waits for {paths.name}, which has not begun to run",
                hint="end that one first: wirt exec, cp or wait",
            )
        try:
            return cls(GuestSession.open(paths.socket(HELPERS[0]), timeout=_OPEN_SECONDS), lock)
        except BaseException:
            os.close(lock)
            raise

    def close(self) -> None:
        """End the session and let go of the port."""
        self.session.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


@contextmanager
def guest_session(paths: VmPaths, *, timeout: float) -> Iterator[GuestSession]:
    """Hold a port and yield a session with the helper behind it.

    A port serves one client at a time; when all are taken, wait for one. Raises Busy,
    Timeout, ProtocolError.
    """
    deadline = time.monotonic() + timeout
    index, lock = _free_port(paths, deadline)
    try:
        left = max(0.1, deadline - time.monotonic())
        with GuestSession.connect(paths.socket(HELPERS[index]), timeout=left) as session:
            yield session
    finally:
        os.close(lock)


def _free_port(paths: VmPaths, deadline: float) -> tuple[int, int]:
    while True:
        for index in range(len(HELPERS)):
            lock = try_lock(paths.guest_lock(index))
            if lock is not None:
                return index, lock
        if time.monotonic() > deadline:
            raise Busy(
                f"all {len(HELPERS)} helper ports of {paths.name} are busy with other commands",
                hint="wait for one of them to end",
            )
        time.sleep(_POLL_SECONDS)
