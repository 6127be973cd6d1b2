"""What is known of the guest of a machine that is frozen: by what it can be talked to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

from wirt.errors import WirtError
from wirt.protocols.guest.client import GuestSession
from wirt.protocols.qmp.client import QmpClient
from wirt.store.layout import VmPaths
from wirt.store.locks import try_lock
from wirt.store.states import GuestFacts
from wirt.vm.channels import AGENT, HELPERS, open_ports

_GREETING_SECONDS = 5.0


@contextmanager
def ports_taken(paths: VmPaths) -> Iterator[bool]:
    """Hold all ports of the helper, so that no command begins; False if one runs."""
    locks = [try_lock(paths.guest_lock(index)) for index in range(len(HELPERS))]
    try:
        yield None not in locks
    finally:
        for lock in locks:
            if lock is not None:
                os.close(lock)


def look_at_guest(paths: VmPaths, qmp: QmpClient) -> GuestFacts:
    """Ask the guest what it is; the caller holds the helper's ports."""
    ports = open_ports(qmp)
    facts = GuestFacts(agent=AGENT in ports)
    if not ports.intersection(HELPERS):
        return facts
    with (
        contextlib.suppress(WirtError),
        GuestSession.connect(paths.socket(HELPERS[0]), timeout=_GREETING_SECONDS) as session,
    ):
        info = session.info(timeout=_GREETING_SECONDS)
        return GuestFacts(
            helper=True,
            agent=facts.agent,
            hostname=info.hostname,
            kernel=info.kernel,
            os=info.os,
            boot_id=info.boot_id,
        )
    return facts
