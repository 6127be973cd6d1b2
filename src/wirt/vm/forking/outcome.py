"""What became of a fork's new identity."""

from __future__ import annotations

import msgspec


class Outcome(msgspec.Struct, frozen=True):
    """What the guest says it is now.

    ``uuid`` is fresh from its kernel: equal in two forks, they share random numbers; "" if
    nobody in the guest could be asked. ``unchanged`` says in words what stayed as it was.
    """

    by: str = ""
    uuid: str = ""
    unchanged: tuple[str, ...] = ()
