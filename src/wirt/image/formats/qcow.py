"""qcow: QEMU's first copy-on-write format.

There is no specification; the layout is that of QEMU's ``block/qcow.c``. Big-endian.

::

    0  "QFI" and the byte 0xfb  4 version 1  8 backing name's offset (u64)  16 its length  20 mtime
    24 disk size  32 cluster bits  33 L2 bits  36 encryption (1: AES-128-CBC)  40 L1 table
    tables of u64: 0 not allocated; bit 63: compressed (deflate without header), the next
    ``cluster bits`` bits its length, the rest its place; else the file offset
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping

from wirt.errors import (
    CorruptImage,
    ImageAccessDenied,
    NotThisFormat,
    OutOfBounds,
    UnsupportedImage,
    UsageError,
)
from wirt.image.base import (
    CompressedWriter,
    Extent,
    ExtentKind,
    Format,
    Image,
    ImageInfo,
    OpenOptions,
    Storage,
)
from wirt.image.formats.cloop import inflate
from wirt.image.formats.mapped import SECTOR, read_exactly, refuse_unknown, stored_size
from wirt.image.formats.table_check import Use
from wirt.image.formats.two_level import TwoLevelImage
from wirt.image.sector_cipher import SectorCipher, make_cipher

_HEADER = struct.Struct(">4sIQIIQBBHIQ")
_MAGIC = b"QFI\xfb"
_COMPRESSED = 1 << 63
_LONGEST_NAME = 1023
_WINDOW = 4096


class QcowImage(TwoLevelImage, CompressedWriter):
    format_name = "qcow"
    compression = "deflate"
    _order = ">"

    def __init__(self, storage: Storage, options: OpenOptions) -> None:
        super().__init__(storage, options)
        head = storage.pread(0, _HEADER.size)
        if len(head) < _HEADER.size or head[:8] != _MAGIC + b"\0\0\0\1":
            raise NotThisFormat("there is no qcow 1 signature")
        _, _, at, length, _, size, bits, l2_bits, _, crypt, l1 = _HEADER.unpack(head)
        if not 9 <= bits <= 16 or not 6 <= l2_bits <= 13:
            raise CorruptImage(f"clusters of 2^{bits} bytes, tables of 2^{l2_bits} entries")
        if size > 1 << 56:
            raise CorruptImage(f"a disk cannot have {size} bytes")
        self._bits = bits
        self.virtual_size = size // SECTOR * SECTOR
        self.block_size = self.compression_unit = 1 << bits
        self._l2_entries = 1 << l2_bits
        entries = -(-size // (self._l2_entries * self.block_size))
        self._load_l1(storage, l1, entries, options.budget)
        self._name_place = (at, length)
        self._encrypted = False
        self._cipher = self._make_cipher(crypt, options)
        self.backing_name = self._backing_name(at, length)
        self._last: tuple[int, bytes] = (-1, b"")

    def _make_cipher(self, crypt: int, options: OpenOptions) -> SectorCipher | None:
        if crypt == 0:
            return None
        if crypt != 1:
            raise UnsupportedImage(f"qcow encryption {crypt} is not known")
        if self.writable:
            raise UnsupportedImage("encrypted qcow 1 disks can only be read")
        self._encrypted = True
        if options.secret is None:
            return None  # it can be looked at
        return make_cipher("aes", "cbc-plain64", options.secret[:16].ljust(16, b"\0"))

    def _backing_name(self, at: int, length: int) -> str:
        if not at:
            return ""
        if length > _LONGEST_NAME:
            raise CorruptImage(f"a backing file's name of {length} bytes")
        return os.fsdecode(read_exactly(self.storage, at, length, "the backing file's name"))

    def _run(self, offset: int, limit: int) -> Extent:
        absent = self._hole_without_table(offset, limit)
        if absent is not None:
            return absent
        index, inside = divmod(offset, self.block_size)
        length = min(limit, self.block_size - inside)
        entry = self._entry(index)
        if entry == 0:
            return Extent(offset, length, ExtentKind.HOLE)
        if entry & _COMPRESSED or self._encrypted:
            packed = bool(entry & _COMPRESSED)
            return Extent(offset, length, ExtentKind.DATA, compressed=packed)
        place = entry + inside
        if place >= self.storage.size():
            raise CorruptImage("a cluster lies beyond the end of the file", offset=offset)
        return Extent(offset, length, ExtentKind.DATA, storage=self.storage, storage_offset=place)

    def _place_of(self, index: int) -> int | None:
        entry = self._entry(index)
        return entry if entry and not entry & _COMPRESSED else None

    @property
    def _grid(self) -> int:
        return 1

    @property
    def can_allocate(self) -> bool:
        return not self._encrypted

    def _metadata(self) -> Iterator[Use]:
        yield Use(0, _HEADER.size, "the header")
        if self._name_place[0]:
            yield Use(*self._name_place, "the backing file's name")
        yield Use(self._l1_offset, 8 * len(self._l1), "the L1 table")
        yield from super()._metadata()

    def _uses(self) -> Iterator[Use]:
        yield from super()._uses()
        for index in self._set_blocks():
            entry = self._entry(index)
            if entry & _COMPRESSED:
                yield Use(*self._packed_place(entry), f"compressed cluster {index}", index)

    def _packed_place(self, entry: int) -> tuple[int, int]:
        shift = 63 - self._bits
        return entry & (1 << shift) - 1, entry >> shift & self.block_size - 1

    def set_backing(self, name: str | None, backing_format: str | None) -> None:
        """Name another backing image: behind everything else, then in the header's sector."""
        self._before_write()
        self.flush()
        data, place = os.fsencode(name or ""), 0
        if len(data) > _LONGEST_NAME:
            raise UsageError("the backing file's name is too long for qcow")
        if data:
            place = self._append(data, align=SECTOR)
            self._next = -(-self._next // self.block_size) * self.block_size
            self.storage.flush()
        self.storage.pwrite(8, struct.pack(">QI", place, len(data)))
        self.storage.flush()
        self.backing_name, self._name_place = os.fsdecode(data), (place, len(data))

    def _read_packed(self, offset: int, length: int) -> bytes:
        parts = []
        while length:
            index, inside = divmod(offset, self.block_size)
            part = self._cluster(index)[inside : inside + length]
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def _cluster(self, index: int) -> bytes:
        entry = self._entry(index)
        if self._last[0] == entry:
            return self._last[1]
        if entry & _COMPRESSED:
            place, length = self._packed_place(entry)
            packed = read_exactly(self.storage, place, length, "a compressed cluster")
            content = inflate(packed, self.block_size, window=-15)
        else:
            content = self._deciphered(index, entry)
        self._last = (entry, content)
        return content

    def _deciphered(self, index: int, entry: int) -> bytes:
        content = read_exactly(self.storage, entry, self.block_size, "a cluster")
        if self._encrypted and self._cipher is None:
            raise ImageAccessDenied("the image is encrypted", hint="give its passphrase")
        if self._cipher is None:
            return content
        return self._cipher.decrypt(index * self.block_size // SECTOR, content)

    def write_compressed(
        self, offset: int, packed: bytes | None, plain: bytes | memoryview
    ) -> None:
        self._check(offset, len(plain))
        if offset % self.block_size:
            raise OutOfBounds("a compressed write must start at a cluster", offset=offset)
        # QEMU looks back 4 KiB at most; only old makers have larger clusters.
        smaller = packed is not None and len(packed) < self.block_size <= _WINDOW
        if packed is None or not smaller:
            self.pwrite(offset, plain)
            return
        self._before_write()
        self._last = (-1, b"")
        index, place = offset // self.block_size, self._append(packed, align=1)
        self._set(index, _COMPRESSED | len(packed) << 63 - self._bits | place)
        self._unpublished.add(index)

    def _overlaid(self, index: int, offset: int, part: memoryview) -> bytes:
        self._last = (-1, b"")
        return super()._overlaid(index, offset, part)

    def info(self) -> ImageInfo:
        return ImageInfo(
            "qcow",
            self.virtual_size,
            stored_size(self.storage),
            self.block_size,
            backing_name=self.backing_name,
            encrypted=self._encrypted,
        )


class QcowFormat(Format):
    name = "qcow"
    suffixes = (".qcow",)
    images = (QcowImage,)
    has_backing = True
    has_compression = True

    def probe(self, storage: Storage) -> bool:
        return storage.pread(0, 8) == _MAGIC + b"\0\0\0\1"

    def open(self, storage: Storage, options: OpenOptions) -> Image:
        image = QcowImage(storage, options)
        if image.backing_name and options.with_backing:
            if options.related is None:
                raise ImageAccessDenied("the image needs its backing file")
            image.backing = options.related.image([image.backing_name])
        return image

    def create(self, storage: Storage, size: int, options: Mapping[str, str]) -> None:
        """Options: ``backing_file`` (its format is not stored: it is found by its bytes)."""
        refuse_unknown(options, "backing_file", "backing_fmt")
        name = os.fsencode(options.get("backing_file", ""))
        if len(name) > _LONGEST_NAME:
            raise UsageError("the backing file's name is too long for qcow")
        size = -(-size // SECTOR) * SECTOR
        # QEMU's own choice: small clusters over a backing file, 4 KiB without.
        bits, l2_bits = (9, 12) if name else (12, 9)
        l1 = -(-(_HEADER.size + len(name)) // 8) * 8
        entries = -(-size // (1 << bits + l2_bits))
        if entries > 1 << 23:
            raise OutOfBounds("a qcow disk cannot be as large as this")
        at = _HEADER.size if name else 0
        head = _HEADER.pack(_MAGIC, 1, at, len(name), 0, size, bits, l2_bits, 0, 0, l1)
        end = -(-(l1 + 8 * entries) // SECTOR) * SECTOR
        storage.pwrite(0, (head + name).ljust(end, b"\0"))


FORMAT = QcowFormat()
