"""What is closed at the end of a ``with`` block, also of one that fails."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self


class Closing(ABC):
    """Something that is open until it is closed."""

    @abstractmethod
    def close(self) -> None:
        """Let go of it; a second time does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
