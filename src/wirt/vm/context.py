"""What every use case needs: the home, and somebody to tell what happens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from wirt.store.layout import Home, default_home


def _silent(_text: str) -> None:
    return


@dataclass(frozen=True, slots=True)
class Context:
    """``say`` receives one-line notes of what is being done or was chosen, for a person."""

    home: Home = field(default_factory=default_home)
    say: Callable[[str], None] = _silent
