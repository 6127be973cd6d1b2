"""What the host holds for one card that is plugged in."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import msgspec

from wirt.qapi.value import QapiObject


class Uplink(msgspec.Struct, frozen=True):
    """What the host made for a card: descriptors, and the backend that names them."""

    fds: tuple[int, ...]
    value: Callable[[Sequence[str]], QapiObject]
    interface: str = ""
    """The TAP."""

    def close(self) -> None:
        """Give it up; QEMU has its own descriptors by now, or nobody shall have it."""
        for fd in self.fds:
            os.close(fd)
