"""Several images as one disk, one behind the other (``convert A B TARGET``)."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from itertools import accumulate

from msgspec.structs import replace

from wirt.errors import OutOfBounds
from wirt.image.base import Extent, Image, ImageInfo
from wirt.image.extents import chain_extents


class Concatenated(Image):
    """Reads through to its parts. Closing it closes them."""

    format_name = "concatenated"

    def __init__(self, parts: Sequence[Image]) -> None:
        self.parts = list(parts)
        ends = list(accumulate(part.virtual_size for part in parts))
        self._starts = [0, *ends[:-1]]
        self.virtual_size = ends[-1]
        self.storage = parts[0].storage

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[Image, int, int, int]]:
        """Yield (part, where it starts, offset inside it, length)."""
        if offset < 0 or length < 0 or offset + length > self.virtual_size:
            raise OutOfBounds(f"{length} bytes at {offset:#x} are not inside the disk")
        index = max(0, bisect.bisect_right(self._starts, offset) - 1)
        while length:
            part, start = self.parts[index], self._starts[index]
            inside = offset - start
            step = min(length, part.virtual_size - inside)
            if step:
                yield part, start, inside, step
            offset += step
            length -= step
            index += 1

    def pread(self, offset: int, length: int) -> bytes:
        pieces = self._pieces(offset, length)
        return b"".join(part.pread(inside, step) for part, _, inside, step in pieces)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        for part, start, inside, step in self._pieces(offset, length):
            for extent in chain_extents(part, inside, step):
                yield replace(extent, offset=extent.offset + start, depth=0)

    def info(self) -> ImageInfo:
        infos = [part.info() for part in self.parts]
        allocated = sum(info.allocated_size for info in infos)
        return ImageInfo(self.format_name, self.virtual_size, allocated)

    def close(self) -> None:
        for part in self.parts:
            part.close()
