"""sparsebundle: Apple's growing disks in a directory (UDSB), read only.

Apple publishes no specification; the layout is that of "Mac OS disk image types" in libmodi's
documentation.

::

    Info.plist  a property list: diskimage-bundle-type com.apple.diskimage.sparsebundle,
                band-size and size in bytes
    token       empty; the header of an encrypted image (see ``dmg.encryption``)
    bands/N     the bytes of the disk from N bands on, N in hexadecimal; a band that is not
                there, or what is missing of a short one, is zeros

The blocks of an encrypted one are numbered through all bands. The file that is opened is
``Info.plist``, also when the directory is named; the others only if the gate allows it.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

from wirt.errors import CorruptImage, ImageAccessDenied, NotThisFormat, OutOfBounds
from wirt.image.base import (
    Extent,
    ExtentKind,
    Format,
    Image,
    ImageInfo,
    OpenOptions,
    Related,
    Storage,
)
from wirt.image.formats.dmg.encryption import block_cipher, is_encrypted, locked, read_keys
from wirt.image.formats.dmg.trailer import parse_plist
from wirt.image.formats.mapped import SECTOR, MappedImage, hole_before

_TYPE = b"com.apple.diskimage.sparsebundle"
_MOST_PLIST = 1 << 20
_OPEN_BANDS = 32
_BAND = re.compile("[0-9a-f]+")


class _Bands:
    """The band files, of which a few are open at a time."""

    def __init__(self, related: Related, most: int) -> None:
        self._related = related
        self._open: OrderedDict[str, Storage] = OrderedDict()
        # A band must not be closed while another thread reads it.
        self._lock = Lock()
        self.sizes = related.folder("bands", role="extent", most=most)
        self.used = sorted(int(name, 16) for name in self.sizes if _BAND.fullmatch(name))

    def read(self, index: int, offset: int, length: int) -> bytes:
        """Return what is there of the bytes asked for."""
        name = f"{index:x}"
        if name not in self.sizes:
            return b""
        with self._lock:
            return self._opened(name).pread(offset, length)

    def _opened(self, name: str) -> Storage:
        band = self._open.get(name)
        if band is None:
            if len(self._open) >= _OPEN_BANDS:
                self._open.popitem(last=False)[1].close()
            band = self._open[name] = self._related.storage(f"bands/{name}", role="extent")
        self._open.move_to_end(name)
        return band

    def close(self) -> None:
        for band in self._open.values():
            band.close()
        self._open.clear()


class SparseBundleImage(MappedImage):
    format_name = "sparsebundle"

    def __init__(self, storage: Storage, related: Related, options: OpenOptions) -> None:
        self.storage = storage
        if storage.size() > _MOST_PLIST:
            raise NotThisFormat("this is no property list of a sparse bundle")
        values = parse_plist(storage.pread(0, _MOST_PLIST))
        if values.get("diskimage-bundle-type") != _TYPE.decode():
            raise NotThisFormat("this is no property list of a sparse bundle")
        self.block_size = _number(values, "band-size", 1 << 40)
        size = _number(values, "size", 1 << 56)
        self.virtual_size = -(-size // SECTOR) * SECTOR
        self._unit = SECTOR
        self._encrypted = False
        self._decipher: Callable[[int, bytes], bytes] | None = None
        self._open_token(related, options)
        if self.block_size % self._unit:
            raise CorruptImage(f"bands cannot have {self.block_size} bytes")
        self._bands = _Bands(related, options.budget.metadata_bytes // 64)

    def _open_token(self, related: Related, options: OpenOptions) -> None:
        with related.storage("token", role="extent") as token:
            self._encrypted = is_encrypted(token)
            if self._encrypted and options.secret is not None:
                keys = read_keys(token, options.secret)
                self._unit = keys.block_size
                self._decipher = block_cipher(keys)

    def _run(self, offset: int, limit: int) -> Extent:
        index, inside = divmod(offset, self.block_size)
        length = min(limit, self.block_size - inside)
        stored = self._bands.sizes.get(f"{index:x}")
        if stored is None:
            return hole_before(self._bands.used, offset, limit, self.block_size)
        stored = -(-stored // self._unit) * self._unit
        if inside >= stored:
            return Extent(offset, length, ExtentKind.ZERO)
        return Extent(offset, min(length, stored - inside), ExtentKind.DATA)

    def _read_packed(self, offset: int, length: int) -> bytes:
        parts = []
        while length:
            index, inside = divmod(offset, self.block_size)
            step = min(length, self.block_size - inside)
            parts.append(self._read_band(index, inside, step))
            offset += step
            length -= step
        return b"".join(parts)

    def _read_band(self, index: int, inside: int, length: int) -> bytes:
        first, last = inside // self._unit, -(-(inside + length) // self._unit)
        start = first * self._unit
        data = self._bands.read(index, start, last * self._unit - start)
        if self._encrypted and self._decipher is None:
            raise locked()
        if self._decipher is not None:
            data += bytes(-len(data) % self._unit)
            number = index * (self.block_size // self._unit) + first
            if number + last - first >= 1 << 32:
                raise OutOfBounds("the disk has more blocks than can be numbered")
            data = self._decipher(number, data)
        return data[inside - start : inside - start + length].ljust(length, b"\0")

    def info(self) -> ImageInfo:
        stored = sum(self._bands.sizes.values())
        return ImageInfo(
            "sparsebundle",
            self.virtual_size,
            stored,
            self.block_size,
            encrypted=self._encrypted,
        )

    def close(self) -> None:
        self._bands.close()
        super().close()


def _number(values: dict[str, object], key: str, most: int) -> int:
    value = values.get(key)
    if not isinstance(value, int) or not 0 < value <= most:
        raise CorruptImage(f"{key} of the sparse bundle is wrong")
    return value


class SparseBundleFormat(Format):
    name = "sparsebundle"
    suffixes = (".sparsebundle",)
    images = (SparseBundleImage,)
    bundle_file = "Info.plist"

    def probe(self, storage: Storage) -> bool:
        head = storage.pread(0, 4096)
        return head.startswith(b"<?xml") and _TYPE in head

    def open(self, storage: Storage, options: OpenOptions) -> Image:
        if options.related is None:
            raise ImageAccessDenied("the image needs its bands")
        return SparseBundleImage(storage, options.related, options)


FORMAT = SparseBundleFormat()
