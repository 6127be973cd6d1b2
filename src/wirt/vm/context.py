"""What every use case needs: the home, and somebody to tell what happens."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from wirt.store.layout import Home, default_home


def _silent(_text: str) -> None:
    return


class Context(msgspec.Struct, frozen=True):
    """``say`` receives one-line notes of what is being done or was chosen, for a person."""

    home: Home = msgspec.field(default_factory=default_home)
    say: Callable[[str], None] = _silent
