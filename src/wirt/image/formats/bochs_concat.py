"""bochs-concat: disks of the Bochs emulator in several flat files, one behind the other.

Specification: "concat" under "Disk Image Modes" in the Bochs user manual. There is no header:
the first file is named, and the next ones have the same name with the last character counted
up (``c.img1``, ``c.img2`` …), as long as there is such a file, eight at most.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from wirt.errors import CorruptImage, ImageAccessDenied, ImageIoError, UsageError
from wirt.image.base import (
    Extent,
    ExtentKind,
    Format,
    Image,
    ImageInfo,
    OpenOptions,
    Related,
    Storage,
    WritableImage,
)
from wirt.image.formats.mapped import SECTOR, MappedImage, stored_size, verbatim

_MOST = 8
_ZEROS = bytes(1 << 20)


class BochsConcatImage(MappedImage, WritableImage):
    format_name = "bochs-concat"

    def __init__(self, parts: Sequence[Storage], options: OpenOptions) -> None:
        self.storage = parts[0]
        self.writable = options.writable
        self._parts = list(parts)
        self._starts = []
        end = 0
        for part in parts:
            if part.size() % SECTOR:
                raise CorruptImage("the file is not made of whole sectors", path=part.name)
            self._starts.append(end)
            end += part.size()
        self.virtual_size = end

    def _run(self, offset: int, limit: int) -> Extent:
        number = bisect.bisect_right(self._starts, offset) - 1
        part, place = self._parts[number], offset - self._starts[number]
        return verbatim(offset, min(limit, part.size() - place), part, place)

    def _before_write(self, offset: int, length: int) -> None:
        self._check(offset, length)
        if not self.writable:
            raise ImageIoError("the image is open for reading only", path=self.storage.name)

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        self._before_write(offset, len(view))
        while view:
            number = bisect.bisect_right(self._starts, offset) - 1
            part, place = self._parts[number], offset - self._starts[number]
            step = min(len(view), part.size() - place)
            part.pwrite(place, view[:step])
            view = view[step:]
            offset += step

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self._before_write(offset, length)
        for run in list(self._runs(offset, length)):
            if run.kind is ExtentKind.ZERO:
                continue
            if (
                unmap
                and run.storage
                and run.storage.punch_hole(run.storage_offset or 0, run.length)
            ):
                continue
            for at in range(0, run.length, len(_ZEROS)):
                self.pwrite(run.offset + at, memoryview(_ZEROS)[: run.length - at])

    def discard(self, offset: int, length: int) -> None:
        self.write_zeroes(offset, length)

    def flush(self) -> None:
        for part in self._parts:
            part.flush()

    def info(self) -> ImageInfo:
        stored = sum(stored_size(part) for part in self._parts)
        return ImageInfo(
            "bochs-concat", self.virtual_size, stored, specific={"files": len(self._parts)}
        )

    def close(self) -> None:
        for part in self._parts[1:]:
            part.close()
        super().close()


class BochsConcatFormat(Format):
    name = "bochs-concat"
    images = (BochsConcatImage,)

    def probe(self, storage: Storage) -> bool:
        """Never claim a file: there is nothing to know it by."""
        return False

    def open(self, storage: Storage, options: OpenOptions) -> Image:
        if options.related is None:
            raise ImageAccessDenied("the image needs its other files")
        parts = [storage]
        try:
            for name in _further(storage.name):
                part = _opened(options.related, name)
                if part is None:
                    break
                parts.append(part)
            return BochsConcatImage(parts, options)
        except BaseException:
            for part in parts[1:]:
                part.close()
            raise


def _further(path: str) -> list[str]:
    """Return the names that the further files would have."""
    name = path.rsplit("/", 1)[-1]
    if ord(name[-1]) + _MOST >= 0x7F:
        raise UsageError("a name whose last character can be counted up is expected")
    return [name[:-1] + chr(ord(name[-1]) + number) for number in range(1, _MOST)]


def _opened(related: Related, name: str) -> Storage | None:
    try:
        return related.storage(name, role="extent")
    except ImageIoError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


FORMAT = BochsConcatFormat()
