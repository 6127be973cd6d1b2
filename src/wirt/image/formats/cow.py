"""cow: the overlays of User-mode Linux, versions 1 to 3, and those of the first QEMU.

Specification: ``arch/um/drivers/cow_user.c`` of Linux; ``block/cow.c`` of QEMU before 2.2.
Big-endian; version 1 as the host that made it: then the magic begins with an ``M`` on
little-endian ones. Every layout has the magic ``OOOM``, the version, the backing file's
absolute name, its modification time, its size, the sector size, and its bitmap behind them.

::

    uml1   8 name[256]   264 time u32  268 size u64  276 sector u32  280 bitmap
    uml2   8 name[4096]  4104 time     4108 size     4116 sector     4120 bitmap
    uml3   8 time u32  12 size u64  20 sector  24 alignment  28 zero  32 name[4096]
           the bitmap is at the next multiple of the alignment
    uml3-64  as uml3 with 4 bytes more behind the time: 64-bit kernels until 2005
    qemu   version 2; 8 name[1024]  1032 time  1040 size  1048 sector  1056 bitmap
           (made on a 32-bit host: 1036 size  1044 sector  1048 bitmap)

    bitmap: one bit for each sector, lowest first; 1: its data are here, 0: in the backing file
    data:   each sector at its own place, behind the bitmap at the next multiple of the
            alignment (uml3), of the sector size (uml1, uml2) or of 512 (qemu)

The bitmaps of uml1 and uml2 were made too short by a mistake in rounding: up to seven
sectors at the disk's end have no bit and can never be written. User-mode Linux wants the
backing file, always raw, with just this size and time: a change below an overlay is garbage
above it. So do we; QEMU's has neither rule, and needs no backing file.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from wirt.errors import (
    CorruptImage,
    ImageAccessDenied,
    ImageIoError,
    NotThisFormat,
    UnsupportedImage,
    UsageError,
)
from wirt.image.base import (
    Extent,
    ExtentKind,
    Format,
    Image,
    ImageInfo,
    OpenOptions,
    Overlay,
    Storage,
)
from wirt.image.formats.bit_pages import BitPages
from wirt.image.formats.mapped import SECTOR, MappedImage, refuse_unknown, stored_size
from wirt.image.storage.file import FileStorage

_MAGIC = b"OOOM"
_UML1 = "4sI256sIQI"
_UML2 = ">4sI4096sIQI"
_UML3 = ">4sIIQIII4096s"
_UML3_64 = ">4sII4xQIII4096s4x"
_QEMU = ">4sI1024sI4xQI4x"
_QEMU_32 = ">4sI1024sIQI"
_LONGEST = struct.calcsize(_UML3_64)
_ALIGNMENT = 4096
_ZEROS = bytes(1 << 20)


class Header(msgspec.Struct, frozen=True):
    kind: str
    layout: str
    """As ``struct`` says it."""
    name: bytes
    mtime: int
    size: int
    sector: int = SECTOR
    alignment: int = SECTOR

    @classmethod
    def parse(cls, head: bytes) -> Header:
        """Raises NotThisFormat, UnsupportedImage or CorruptImage."""
        magic, order = head[:4], ">"
        if magic == _MAGIC[::-1]:
            order = "<"
        elif magic != _MAGIC:
            raise NotThisFormat("there is no COW signature")
        if len(head) < 8:
            raise CorruptImage("the header is cut off")
        (version,) = struct.unpack_from(f"{order}I", head, 4)
        if version == 1:
            return cls._old("uml1", order + _UML1, head)
        if order == ">" and version == 2:
            return cls._version_2(head)
        if order == ">" and version == 3:
            return cls._version_3(head)
        raise UnsupportedImage(f"COW version {version} is not known")

    @classmethod
    def _old(cls, kind: str, layout: str, head: bytes) -> Header:
        if len(head) < struct.calcsize(layout):
            raise CorruptImage("the header is cut off")
        _, _, name, mtime, size, sector = struct.unpack_from(layout, head)
        alignment = SECTOR if kind == "qemu" else sector
        return cls(kind, layout, _text(name), mtime, size, sector, alignment).checked()

    @classmethod
    def _version_2(cls, head: bytes) -> Header:
        """QEMU took the number too: its sector size lies where UML's name goes on."""
        for layout in (_QEMU, _QEMU_32):
            if len(head) >= struct.calcsize(layout):
                _, _, _, _, size, sector = struct.unpack_from(layout, head)
                if sector == SECTOR and size and not size % SECTOR:
                    return cls._old("qemu", layout, head)
        return cls._old("uml2", _UML2, head)

    @classmethod
    def _version_3(cls, head: bytes) -> Header:
        kind, layout = "uml3", _UML3
        if head[32:36] == bytes(4):  # no name begins like that: it is the zero of uml3-64
            kind, layout = "uml3-64", _UML3_64
        if len(head) < struct.calcsize(layout):
            raise CorruptImage("the header is cut off")
        _, _, mtime, size, sector, align, how, name = struct.unpack_from(layout, head)
        if how:
            raise UnsupportedImage(f"COW format {how} is not known")
        return cls(kind, layout, _text(name), mtime, size, sector, align).checked()

    def checked(self) -> Header:
        if self.sector % SECTOR or not SECTOR <= self.sector <= 1 << 16:
            raise CorruptImage(f"sectors cannot be {self.sector} bytes long")
        if not 0 < self.alignment <= 1 << 20:
            raise CorruptImage(f"the data cannot be aligned to {self.alignment} bytes")
        if not self.size or self.size > 1 << 56:
            raise CorruptImage(f"a disk cannot have {self.size} bytes")
        return self

    @property
    def length(self) -> int:
        return struct.calcsize(self.layout)

    @property
    def bitmap_offset(self) -> int:
        aligned = self.kind in {"uml3", "uml3-64"}
        return _round_up(self.length, self.alignment) if aligned else self.length

    @property
    def bitmap_bits(self) -> int:
        """How many sectors have a bit."""
        if self.kind in {"uml1", "uml2"}:
            return (self.size + self.sector - 1) // (8 * self.sector) * 8
        return -(-self.size // self.sector)

    @property
    def data_offset(self) -> int:
        return _round_up(self.bitmap_offset + -(-self.bitmap_bits // 8), self.alignment)

    @property
    def longest_name(self) -> int:
        return {"uml1": 255, "qemu": 1023}.get(self.kind, 4095)

    def pack(self) -> bytes:
        magic = _MAGIC[::-1] if self.layout[0] == "<" else _MAGIC
        if self.kind in {"uml3", "uml3-64"}:
            return struct.pack(
                self.layout, magic, 3, self.mtime, self.size, self.sector, self.alignment, 0,
                self.name,
            )  # fmt: skip
        version = 1 if self.kind == "uml1" else 2
        return struct.pack(
            self.layout, magic, version, self.name, self.mtime, self.size, self.sector
        )


def _text(raw: bytes) -> bytes:
    return raw.split(b"\0", 1)[0]


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


class CowImage(MappedImage, Overlay):
    """Sectors at fixed places. Their bits are set by ``flush``, when they are durable."""

    format_name = "cow"

    def __init__(self, storage: Storage, options: OpenOptions) -> None:
        self.storage = storage
        self.writable = options.writable
        self.header = Header.parse(storage.pread(0, _LONGEST))
        self.virtual_size = _round_up(self.header.size, SECTOR)
        self._unit = self.header.sector
        self._data = self.header.data_offset
        self._bits = BitPages(storage, self.header.bitmap_offset, self.header.bitmap_bits)
        if self._data > storage.size() + _ALIGNMENT:
            raise CorruptImage("the bitmap lies beyond the end of the file")

    @property
    def backing_name(self) -> str:
        return os.fsdecode(self.header.name)

    @property
    def is_uml(self) -> bool:
        return self.header.kind != "qemu"

    def _run(self, offset: int, limit: int) -> Extent:
        sector, inside = divmod(offset, self._unit)
        if sector >= self._bits.count:
            return Extent(offset, limit, ExtentKind.HOLE)
        present, count = self._bits.run(sector)
        count = min(count, self._bits.count - sector)
        length = min(limit, count * self._unit - inside)
        if not present:
            return Extent(offset, length, ExtentKind.HOLE)
        place = self._data + offset
        return Extent(offset, length, ExtentKind.DATA, storage=self.storage, storage_offset=place)

    def _before_write(self, offset: int, length: int) -> None:
        self._check(offset, length)
        if not self.writable:
            raise ImageIoError("the image is open for reading only", path=self.storage.name)
        if length and (offset + length - 1) // self._unit >= self._bits.count:
            raise UnsupportedImage(
                f"the last sectors of a {self.header.kind} disk of this size cannot be written",
                offset=offset,
                hint="make a uml3 overlay",
            )

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        self._before_write(offset, len(view))
        if not view:
            return
        start = offset // self._unit * self._unit
        end = _round_up(offset + len(view), self._unit)
        before = self.pread(start, offset - start)
        after = self._rest_of_sector(offset + len(view), end)
        self.storage.pwrite(self._data + start, b"".join((before, view, after)))
        self._mark(start, end)

    def _rest_of_sector(self, start: int, end: int) -> bytes:
        inside = max(0, min(end, self.virtual_size) - start)
        return self.pread(start, inside).ljust(end - start, b"\0")

    def _mark(self, start: int, end: int) -> None:
        self._bits.mark(start // self._unit, (end - start) // self._unit)
        if self._bits.full:
            self.flush()

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self._before_write(offset, length)
        end = offset + length
        first = min(_round_up(offset, self._unit), end)
        last = end if end == self.virtual_size else max(first, end // self._unit * self._unit)
        self.pwrite(offset, bytes(first - offset))
        for run in self._runs(first, last - first):
            if run.kind is ExtentKind.DATA or self.header.name:
                self._erase(run.offset, run.length, unmap=unmap)
        self.pwrite(last, bytes(end - last))

    def _erase(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make whole sectors zeros of this image's own."""
        end = _round_up(offset + length, self._unit)
        if not unmap or not self.storage.punch_hole(self._data + offset, end - offset):
            self._fill(self._data + offset, end - offset)
        self._mark(offset, end)

    def _fill(self, place: int, length: int) -> None:
        for at in range(0, length, len(_ZEROS)):
            step = min(length - at, len(_ZEROS))
            self.storage.pwrite(place + at, memoryview(_ZEROS)[:step])

    def discard(self, offset: int, length: int) -> None:
        self.write_zeroes(offset, length)

    def flush(self) -> None:
        self.storage.flush()
        if self._bits.publish():
            self.storage.flush()

    def close(self) -> None:
        try:
            if self.writable:
                self.flush()
        finally:
            super().close()

    def set_backing(self, name: str | None, backing_format: str | None) -> None:
        self._before_write(0, 0)
        if self.is_uml:
            _refuse_for_uml(name, backing_format)
            full = _absolute(self.storage.name, name or "")
            size, mtime = _size_and_time(full)
            if size != self.header.size:
                raise UsageError("User-mode Linux wants a backing file of the same size")
        else:
            full, mtime = name or "", 0
        self._write_header(_named(self.header, full, mtime))

    def _write_header(self, header: Header) -> None:
        old, new = self.header.pack(), header.pack()
        # Names of usual length change within one sector, and so at once.
        changed = [
            at for at in range(0, len(new), SECTOR) if new[at:][:SECTOR] != old[at:][:SECTOR]
        ]
        for at in changed:
            self.storage.pwrite(at, new[at:][:SECTOR])
        self.storage.flush()
        self.header = header

    def make_empty(self) -> None:
        self._before_write(0, 0)
        self._bits.clear()
        self.storage.flush()
        if self.is_uml and self.backing is not None:
            # What was committed has changed the backing file: it is still the right one.
            self._write_header(replace(self.header, mtime=_time_of(self.backing.storage)))
        self.storage.punch_hole(self._data, max(0, self.storage.size() - self._data))

    def info(self) -> ImageInfo:
        return ImageInfo(
            "cow",
            self.virtual_size,
            stored_size(self.storage),
            self._unit,
            backing_name=self.backing_name,
            backing_format="raw" if self.is_uml and self.header.name else "",
            specific={"subformat": self.header.kind},
        )


def _named(header: Header, name: str, mtime: int) -> Header:
    raw = os.fsencode(name)
    if len(raw) > header.longest_name:
        raise UsageError(f"the backing file's name is too long for {header.kind}")
    return replace(header, name=raw, mtime=mtime)


def _refuse_for_uml(name: str | None, backing_format: str | None) -> None:
    if not name:
        raise UsageError(
            "an overlay of User-mode Linux cannot be without a backing file",
            hint="convert it: wirt img convert",
        )
    if backing_format not in {None, "", "raw"}:
        raise UsageError("backing files of User-mode Linux are raw")


def _absolute(referrer: str, name: str) -> str:
    return os.path.abspath(os.path.join(os.path.dirname(referrer), name))


def _time_of(storage: Storage) -> int:
    """Return when the file was last changed, or 0 where that is not known."""
    fd = storage.fileno()
    return 0 if fd is None else int(os.fstat(fd).st_mtime) & 0xFFFFFFFF


def _size_and_time(path: str) -> tuple[int, int]:
    with FileStorage(path) as file:
        return file.size(), _time_of(file)


def _refuse_other_backing(image: CowImage, backing: Image) -> None:
    """Raise CorruptImage unless the backing file is as it was when the overlay was made."""
    storage, header = backing.storage, image.header
    if storage.size() != header.size:
        raise CorruptImage(
            f"the backing file has {storage.size()} bytes, with its overlay made: {header.size}"
        )
    if storage.fileno() is not None and _time_of(storage) != header.mtime:
        raise CorruptImage(
            "the backing file was changed after it got its overlay",
            hint="if it was only copied, name it again: wirt img rebase --unsafe -F raw",
        )


_LAYOUTS = {"uml1": "<" + _UML1, "uml2": _UML2, "uml3": _UML3, "qemu": _QEMU}


class CowFormat(Format):
    name = "cow"
    suffixes = (".cow",)
    images = (CowImage,)
    has_backing = True

    def probe(self, storage: Storage) -> bool:
        head = storage.pread(0, 8)
        versions = [_MAGIC + bytes((0, 0, 0, version)) for version in (1, 2, 3)]
        return head in versions or head == _MAGIC[::-1] + b"\1\0\0\0"

    def open(self, storage: Storage, options: OpenOptions) -> Image:
        image = CowImage(storage, options)
        if not image.header.name or not options.with_backing:
            return image
        if options.related is None:
            raise ImageAccessDenied("the image needs its backing file")
        known = "raw" if image.is_uml else ""
        backing = options.related.image([image.backing_name], format=known)
        try:
            if image.is_uml:
                _refuse_other_backing(image, backing)
        except BaseException:
            backing.close()
            raise
        image.backing = backing
        return image

    def create(self, storage: Storage, size: int, options: Mapping[str, str]) -> None:
        """Options: ``backing_file``, ``backing_fmt``, ``subformat``: uml3 (with a backing
        file, the default), uml2, uml1, or qemu (without one, the default).
        """
        refuse_unknown(options, "backing_file", "backing_fmt", "subformat")
        name = options.get("backing_file", "")
        kind = options.get("subformat", "uml3" if name else "qemu")
        if kind not in _LAYOUTS:
            raise UsageError(
                f"Invalid parameter '{kind}'", hint="subformat: uml3, uml2, uml1, qemu"
            )
        if kind == "qemu":
            if not size:
                raise UsageError("the size must be named")
            header = Header(kind, _QEMU, b"", 0, _round_up(size, SECTOR))
        else:
            _refuse_for_uml(name, options.get("backing_fmt"))
            name = _absolute(storage.name, name)
            header = _header_over(kind, name, size)
        header = _named(header.checked(), name, header.mtime)
        storage.truncate(header.data_offset + (header.size if kind != "qemu" else 0))
        storage.pwrite(0, header.pack())


def _header_over(kind: str, path: str, size: int) -> Header:
    """Return the header for an overlay that User-mode Linux takes."""
    found, mtime = _size_and_time(path)
    if size not in {0, found, _round_up(found, SECTOR)}:
        raise UsageError(
            f"the backing file has {found} bytes: the overlay must be as large",
            hint="leave the size out, or use subformat=qemu",
        )
    alignment = _ALIGNMENT if kind == "uml3" else SECTOR
    header = Header(kind, _LAYOUTS[kind], b"", mtime, found, SECTOR, alignment)
    if header.bitmap_bits * SECTOR < found:
        raise UsageError(
            f"{kind} cannot write the last sectors of a disk of {found} bytes", hint="use uml3"
        )
    return header


FORMAT = CowFormat()
