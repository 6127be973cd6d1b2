"""sparseimage: Apple's growing disks in one file (UDSP), read only.

Apple publishes no specification; the layout is that of "Mac OS sparse image" in libmodi's
documentation and of fsdump, whose author describes the further tables. Big-endian::

    0     "sprs"  4 version 3  8 sectors of a band  12 flags  16 sectors of the disk (low 32 bits)
          20 offset of the next table (0: none)  28 sectors of the disk
          64 numbers of the bands that follow the table, 1008 u32
    4096  the bands, in the order of the table; 0: none
    next  a table in the same form: 0 "sprs"  4 its number  12 offset of the next table
          56 numbers of bands, 1010 u32; its bands follow

Band n holds the sectors from (n - 1) bands on. An encrypted one opens as ``dmg``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from wirt.errors import CorruptImage, NotThisFormat, OutOfBounds
from wirt.image.base import Extent, ExtentKind, Format, Image, ImageInfo, OpenOptions, Storage
from wirt.image.formats.mapped import (
    SECTOR,
    MappedImage,
    hole_before,
    read_exactly,
    stored_size,
)

_MAGIC = b"sprs"
_NODE = 4096


def is_sparse_image(storage: Storage) -> bool:
    return storage.pread(0, 8) == _MAGIC + b"\0\0\0\3"


class SparseImage(MappedImage):
    format_name = "sparseimage"

    def __init__(self, storage: Storage, options: OpenOptions, *, encrypted: bool = False) -> None:
        self.storage = storage
        self._encrypted = encrypted
        if not is_sparse_image(storage):
            raise NotThisFormat("there is no sparse image signature")
        head = read_exactly(storage, 0, _NODE, "the header")
        band, _, low, following, sectors = struct.unpack_from(">IIIQQ", head, 8)
        if not 0 < band <= 1 << 21:
            raise CorruptImage(f"bands cannot have {band} sectors")
        # The first versions had only the 32-bit count.
        sectors = sectors or low
        if not 0 < sectors < 1 << 47:
            raise CorruptImage(f"a disk cannot have {sectors} sectors")
        self.virtual_size = sectors * SECTOR
        self.block_size: int = band * SECTOR
        self._places: dict[int, int] = {}
        self._load(_NODE, struct.unpack_from(">1008I", head, 64))
        self._load_further(following, options)
        self._used = sorted(self._places)

    def _load(self, place: int, numbers: tuple[int, ...]) -> None:
        bands = -(-self.virtual_size // self.block_size)
        for number in numbers:
            if number:
                if number > bands or number - 1 in self._places:
                    raise CorruptImage(f"band {number} is beyond the disk, or there twice")
                self._places[number - 1] = place
            place += self.block_size

    def _load_further(self, following: int, options: OpenOptions) -> None:
        budget = options.budget.metadata_bytes
        for place, node in self._nodes(following):
            budget -= _NODE
            if budget < 0:
                raise OutOfBounds("the tables of bands are over the budget for metadata")
            self._load(place + _NODE, struct.unpack_from(">1010I", node, 56))

    def _nodes(self, place: int) -> Iterator[tuple[int, bytes]]:
        """Yield the further tables; each lies behind the one before."""
        last = 0
        while place:
            if place <= last:
                raise CorruptImage("the tables of bands go in circles", offset=place)
            node = read_exactly(self.storage, place, _NODE, "a table of bands")
            if node[:4] != _MAGIC:
                raise CorruptImage("a table of bands has no signature", offset=place)
            yield place, node
            last, place = place, struct.unpack_from(">Q", node, 12)[0]

    def _run(self, offset: int, limit: int) -> Extent:
        index, inside = divmod(offset, self.block_size)
        length = min(limit, self.block_size - inside)
        place = self._places.get(index)
        if place is None:
            return hole_before(self._used, offset, limit, self.block_size)
        place += inside
        # The last band need not be whole.
        stored = min(length, self.storage.size() - place)
        if stored <= 0:
            return Extent(offset, length, ExtentKind.ZERO)
        return Extent(offset, stored, ExtentKind.DATA, storage=self.storage, storage_offset=place)

    def info(self) -> ImageInfo:
        size = stored_size(self.storage)
        return ImageInfo(
            "sparseimage", self.virtual_size, size, self.block_size, encrypted=self._encrypted
        )


class SparseImageFormat(Format):
    name = "sparseimage"
    suffixes = (".sparseimage",)
    images = (SparseImage,)

    def probe(self, storage: Storage) -> bool:
        return is_sparse_image(storage)

    def open(self, storage: Storage, options: OpenOptions) -> Image:
        return SparseImage(storage, options)


FORMAT = SparseImageFormat()
