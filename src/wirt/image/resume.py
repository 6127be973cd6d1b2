"""Going on with a conversion that was interrupted.

Beside the unfinished file lies a record of how far it is durable, and of what it is made.
It counts only if sources, format and options are the same.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from wirt.image.base import Image
from wirt.image.layers import layers
from wirt.image.storage.file import image_error

_VERSION = 1
_MOST_BYTES = 1 << 20
_SECONDS = 5.0


class Resumption:
    """The record beside ``partial``."""

    def __init__(
        self, partial: str, source: Image, format_name: str, options: Mapping[str, str]
    ) -> None:
        self._path = partial + ".progress"
        self._job = {
            "version": _VERSION,
            "sources": list(_identities(source)),
            "size": source.virtual_size,
            "format": format_name,
            "options": dict(sorted(options.items())),
        }
        self._due = time.monotonic() + _SECONDS
        self._last = 0

    def load(self) -> int:
        """Return how many guest bytes are durable already; 0 to begin anew."""
        try:
            with open(self._path, "rb") as file:
                record = json.loads(file.read(_MOST_BYTES))
        except (OSError, ValueError):
            return 0
        if not isinstance(record, dict):
            return 0
        done = record.pop("done", None)
        if record != self._job or not isinstance(done, int):
            return 0
        return done if 0 <= done <= int(self._job["size"]) else 0  # type: ignore[call-overload]

    def checkpoint(self, flush: Callable[[], None]) -> Callable[[int], None]:
        """Return what to call with the bytes written so far; it records them now and then."""

        def note(done: int) -> None:
            self._last = done
            if time.monotonic() >= self._due:
                flush()
                self.save(done)
                self._due = time.monotonic() + _SECONDS

        return note

    def save_last(self, flush: Callable[[], None]) -> None:
        """Record all that was written, before giving up."""
        if self._last:
            flush()
            self.save(self._last)

    def save(self, done: int) -> None:
        """Record that ``done`` guest bytes are durable."""
        new = self._path + ".new"
        try:
            with open(new, "w", encoding="utf-8") as file:
                json.dump(self._job | {"done": done}, file)
                file.flush()
                os.fsync(file.fileno())
            os.rename(new, self._path)
        except OSError as error:
            raise image_error(error, new) from error

    def forget(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._path)


def _identities(source: Image) -> Iterator[list[int]]:
    """Yield what tells the files of the chain from others, and from later versions."""
    for layer in layers(source):
        fileno = layer.storage.fileno()
        if fileno is None:
            yield [layer.storage.size()]
        else:
            info = os.fstat(fileno)
            yield [info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns]
