"""One image as a server offers it; the sessions of all clients share it.

All writes go through one open image, so a flush on any connection covers what was completed
on every other: that is what CAN_MULTI_CONN promises.
"""

from __future__ import annotations

import bisect
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress

from wirt.errors import NotFound, UnsupportedImage
from wirt.image.base import ExtentKind, HasBitmaps, Image, WritableImage
from wirt.image.extents import chain_extents
from wirt.image.formats.raw import PlainImage
from wirt.image.nbd_server.access import Access
from wirt.protocols.nbd import codec
from wirt.protocols.nbd.codec import BlockSizes, ExportFlag

_READABLE = (
    ExportFlag.HAS_FLAGS
    | ExportFlag.SEND_FLUSH
    | ExportFlag.SEND_FUA
    | ExportFlag.SEND_DF
    | ExportFlag.SEND_CACHE
    | ExportFlag.CAN_MULTI_CONN
)
_MOST_DESCRIPTORS = 4096
_STATUS_SECONDS = 0.5
"""Longer than this nobody else waits for one question: the client asks again from there."""
_CACHED_AT_ONCE = 1 << 20
_ZERO = codec.STATE_HOLE | codec.STATE_ZERO


class Export:
    """An open image under a name. ``close`` closes the image."""

    blocks = BlockSizes()

    def __init__(
        self,
        name: str,
        image: Image,
        *,
        read_only: bool,
        description: str = "",
        bitmaps: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.description = description
        self.image = image
        self._writable = None if read_only else _require_writable(image)
        self._is_raw = isinstance(image, PlainImage)
        self._access = Access()
        self._dirty = {codec.DIRTY_BITMAP + one: _Bits(image, one) for one in bitmaps}
        self.contexts = (codec.BASE_ALLOCATION, *self._dirty)

    @property
    def read_only(self) -> bool:
        return self._writable is None

    def size(self) -> int:
        return self.image.virtual_size

    def flags(self) -> int:
        if self.read_only:
            return _READABLE | ExportFlag.READ_ONLY
        return _READABLE | ExportFlag.SEND_TRIM | ExportFlag.SEND_WRITE_ZEROES

    # Reading

    def _shared(self) -> AbstractContextManager[None]:
        # A raw disk has no tables that a writer could be changing.
        return nullcontext() if self._is_raw or self.read_only else self._access.shared()

    def _exclusive(self) -> AbstractContextManager[None]:
        return nullcontext() if self._is_raw else self._access.exclusive()

    def place(self, offset: int, length: int) -> tuple[int, int] | None:
        """Return descriptor and offset of a file where these bytes lie as they are.

        None where they lie nowhere, in pieces, or where a writer could move them meanwhile.
        """
        storage, start = self.image.storage, offset
        if not self._is_raw:
            if not self.read_only or not length:
                return None
            extent = next(iter(chain_extents(self.image, offset, length)))
            if extent.kind is not ExtentKind.DATA or extent.length < length:
                return None
            if extent.storage is None or extent.storage_offset is None:
                return None
            storage, start = extent.storage, extent.storage_offset
        fd = storage.fileno()
        return None if fd is None else (fd, start)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view``. Raises ImageError."""
        with self._shared():
            self.image.pread_into(offset, view)

    def cache(self, offset: int, length: int) -> None:
        """Read ahead for whoever reads next."""
        place = self.place(offset, length)
        if place is not None:
            with suppress(OSError):  # only advice
                os.posix_fadvise(*place, length, os.POSIX_FADV_WILLNEED)
            return
        buffer = memoryview(bytearray(min(length, _CACHED_AT_ONCE)))
        for at in range(offset, offset + length, _CACHED_AT_ONCE):
            self.read_into(at, buffer[: offset + length - at])

    def status(
        self, context: str, offset: int, length: int, *, only_one: bool
    ) -> list[tuple[int, int]]:
        """Return (length, state) runs of one context from ``offset`` on, at least one."""
        most = 1 if only_one else _MOST_DESCRIPTORS
        if context in self._dirty:
            return self._dirty[context].runs(offset, length, most)
        with self._shared():
            return _allocation(self.image, offset, length, most)

    # Writing

    def _image_to_write(self) -> WritableImage:
        if self._writable is None:
            raise UnsupportedImage("the export is read-only")
        return self._writable

    def write(self, offset: int, view: memoryview) -> None:
        image = self._image_to_write()
        with self._exclusive():
            image.pwrite(offset, view)

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        image = self._image_to_write()
        with self._exclusive():
            image.write_zeroes(offset, length, unmap=unmap)

    def discard(self, offset: int, length: int) -> None:
        image = self._image_to_write()
        with self._exclusive():
            image.discard(offset, length)

    def flush(self) -> None:
        """Return when all that was written survives a power cut."""
        if self._writable is not None:
            with self._exclusive():
                self._writable.flush()

    def close(self) -> None:
        self.image.close()


def _require_writable(image: Image) -> WritableImage:
    if not isinstance(image, WritableImage):
        raise UnsupportedImage(
            f"{image.format_name} images can only be read",
            path=image.storage.name,
            hint="serve it with --read-only",
        )
    return image


def _allocation(image: Image, offset: int, length: int, most: int) -> list[tuple[int, int]]:
    """Return the runs of base:allocation; together no longer than ``length``."""
    found: list[tuple[int, int]] = []
    give_up = time.monotonic() + _STATUS_SECONDS
    for extent in chain_extents(image, offset, length):
        state = 0 if extent.kind is ExtentKind.DATA else _ZERO
        if found and found[-1][1] == state:
            found[-1] = (found[-1][0] + extent.length, state)
        elif len(found) == most:
            break
        else:
            found.append((extent.length, state))
        if time.monotonic() > give_up:
            break
    return found


class _Bits:
    """A dirty bitmap as it was when the image was opened, as ranges."""

    def __init__(self, image: Image, name: str) -> None:
        if not isinstance(image, HasBitmaps):
            raise UnsupportedImage(f"{image.format_name} images have no bitmaps")
        if all(bitmap.name != name for bitmap in image.bitmaps()):
            raise NotFound(
                f"{image.storage.name} has no bitmap {name!r}", hint="wirt img bitmap, or img info"
            )
        ranges = list(image.bitmap_dirty(name))
        self._starts = [offset for offset, _ in ranges]
        self._ends = [offset + length for offset, length in ranges]

    def runs(self, offset: int, length: int, most: int) -> list[tuple[int, int]]:
        """Return (length, state) runs from ``offset`` on."""
        found: list[tuple[int, int]] = []
        for start, end, state in self._pieces(offset, offset + length):
            if len(found) == most:
                break
            found.append((end - start, state))
        return found

    def _pieces(self, offset: int, end: int) -> Iterator[tuple[int, int, int]]:
        index = bisect.bisect_right(self._ends, offset)
        while offset < end:
            start = self._starts[index] if index < len(self._starts) else end
            if start > offset:
                yield offset, min(start, end), 0
                offset = start
            if offset < end:
                stop = min(self._ends[index], end)
                yield offset, stop, codec.STATE_DIRTY
                offset = stop
            index += 1
