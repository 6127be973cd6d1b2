"""``-p``: a line that is written over and over."""

from __future__ import annotations

import sys


class ProgressLine:
    """Callable as the engine's progress; silent unless asked for."""

    def __init__(self, *, shown: bool, step: float = 1.0) -> None:
        self._shown = shown
        self._step = step
        self._last = -1.0
        self._print(0.0)

    def __call__(self, done: int, total: int) -> None:
        percent = 100.0 * done / total if total else 100.0
        if percent >= self._last + self._step or (percent == 100.0 != self._last):
            self._print(percent)

    def _print(self, percent: float) -> None:
        self._last = percent
        if self._shown:
            sys.stdout.write(f"    ({percent:3.2f}/100%)\r")
            sys.stdout.flush()

    def complete(self) -> None:
        if self._last != 100.0:
            self._print(100.0)

    def end(self) -> None:
        if self._shown:
            print()
