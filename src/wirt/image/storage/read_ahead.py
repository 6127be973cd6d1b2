"""Reading from far away: a window of blocks is kept, and more is asked for than is needed."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections import OrderedDict

from wirt.errors import ImageAccessDenied, ImageIoError
from wirt.image.base import Storage

BLOCK = 256 << 10
_KEPT_BLOCKS = 128
_MOST_AHEAD = 16
"""Blocks in one request: 4 MiB."""


class ReadAhead(Storage):
    """A read-only storage of ``length`` bytes whose every request costs a round trip.

    Who reads on where the last request ended gets twice as much each time, up to 4 MiB.
    Threads may share it; one request is under way at a time.
    """

    read_only = True

    def __init__(self, name: str, length: int) -> None:
        self.name = name
        self._length = length
        self._lock = threading.Lock()
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._next = -1
        self._ahead = 1

    @abstractmethod
    def fetch(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes, all inside the file. Raises ImageError."""

    def size(self) -> int:
        return self._length

    def pread(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0:
            raise ImageIoError(f"no file has {length} bytes at {offset}", path=self.name)
        end = min(offset + length, self._length)
        if offset >= end:
            return b""
        with self._lock:
            parts = []
            while offset < end:
                index, inside = divmod(offset, BLOCK)
                part = self._block(index)[inside : inside + end - offset]
                parts.append(part)
                offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _block(self, index: int) -> bytes:
        if index not in self._blocks:
            self._load(index)
        self._blocks.move_to_end(index)
        return self._blocks[index]

    def _load(self, index: int) -> None:
        self._ahead = min(2 * self._ahead, _MOST_AHEAD) if index == self._next else 1
        start = index * BLOCK
        length = min(self._ahead * BLOCK, self._length - start)
        data = self.fetch(start, length)
        if len(data) != length:
            raise ImageIoError("the server sent less than it promised", path=self.name)
        for place in range(0, length, BLOCK):
            self._blocks[index + place // BLOCK] = data[place : place + BLOCK]
        self._next = index + -(-length // BLOCK)
        while len(self._blocks) > _KEPT_BLOCKS:
            self._blocks.popitem(last=False)

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        raise ImageAccessDenied("a server of files cannot be written to", path=self.name)

    def truncate(self, size: int) -> None:
        raise ImageAccessDenied("a server of files cannot be written to", path=self.name)

    def flush(self) -> None:
        """Nothing is ever written."""
