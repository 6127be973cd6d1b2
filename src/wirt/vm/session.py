"""A session with wirt's helper in a guest: on whichever of its ports is free."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from wirt.errors import Busy
from wirt.protocols.guest.client import GuestSession
from wirt.store.layout import VmPaths
from wirt.store.locks import try_lock
from wirt.vm.channels import HELPERS

_POLL_SECONDS = 0.05


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
