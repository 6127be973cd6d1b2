"""How far a long operation is: one line on a terminal, nothing where nobody watches."""

from __future__ import annotations

import os
import sys
import time
from typing import Self

from wirt.units import format_size

_SECONDS = 0.1


class ProgressLine:
    """Call it with the bytes done and in all (or None); within ``with`` it owns the line."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._shows = sys.stderr.isatty() and not os.environ.get("WIRT_QUIET")
        self._began = self._due = time.monotonic()
        self._first: int | None = None

    def __call__(self, done: int, total: int | None) -> None:
        if not self._shows:
            return
        now = time.monotonic()
        if self._first is None:
            self._first = done
        if now < self._due:
            return
        self._due = now + _SECONDS
        of = f" of {format_size(total)}, {done * 100 // total}%" if total else ""
        rate = format_size(int((done - self._first) / max(now - self._began, _SECONDS)))
        self._print(f"· {self._what}: {format_size(done)}{of}, {rate}/s")

    def _print(self, text: str) -> None:
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._first is not None:
            self._print("")
