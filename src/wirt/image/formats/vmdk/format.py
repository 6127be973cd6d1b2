"""Recognising, opening and making VMDK files."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence

from wirt.errors import ImageError, OutOfBounds, UnsupportedImage, UsageError
from wirt.image.base import Format, Image, OpenOptions, Storage
from wirt.image.formats.mapped import SECTOR, refuse_unknown
from wirt.image.formats.vmdk.descriptor import (
    NO_PARENT,
    ExtentLine,
    format_descriptor,
)
from wirt.image.formats.vmdk.image import VmdkImage, open_parent
from wirt.image.formats.vmdk.sparse import (
    COWD,
    FLAG_NEWLINE,
    FLAG_SPARE,
    FLAG_ZERO,
    KDMV,
    SparseHeader,
)
from wirt.image.replacement import final_name
from wirt.image.storage.file import FileStorage

_GRAIN = 128
_TABLE_ENTRIES = 512
_DESCRIPTOR_SECTORS = 20
_SPLIT = 2047 << 20
_SUBFORMATS = (
    "monolithicSparse",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
)
_ADAPTERS = ("ide", "lsilogic", "buslogic", "legacyESX")


class VmdkFormat(Format):
    name = "vmdk"
    suffixes = (".vmdk",)
    images = (VmdkImage,)
    has_backing = True
    has_compression = True

    def probe(self, storage: Storage) -> bool:
        head = storage.pread(0, 512)
        if head[:4] in {KDMV, COWD}:
            return True
        first = next((line for line in head.splitlines() if line.strip()), b"")
        return first.strip() == b"# Disk DescriptorFile"

    def open(self, storage: Storage, options: OpenOptions) -> Image:
        image = VmdkImage(storage, options)
        if image.has_parent and options.with_backing:
            image.backing = open_parent(image, options)
        return image

    def companions(self, path: str, size: int, options: Mapping[str, str]) -> Sequence[str]:
        kind = options.get("subformat", _SUBFORMATS[0])
        if kind == "monolithicSparse":
            return ()
        names = [name for name, _ in _extent_files(path, kind, -(-size // SECTOR) * SECTOR)]
        return [os.path.join(os.path.dirname(path), name) for name in names]

    def create(self, storage: Storage, size: int, options: Mapping[str, str]) -> None:
        """Options: ``subformat``, ``adapter_type``, ``hwversion``, ``backing_file``."""
        refuse_unknown(
            options, "subformat", "adapter_type", "hwversion", "backing_file", "backing_fmt"
        )
        kind = options.get("subformat", "monolithicSparse")
        adapter = options.get("adapter_type", "ide")
        if kind not in _SUBFORMATS or adapter not in _ADAPTERS:
            raise UsageError(
                f"a VMDK cannot be made as {kind[:40]!r} for {adapter[:40]!r}",
                hint=f"{', '.join(_SUBFORMATS)}; {', '.join(_ADAPTERS)}",
            )
        parent_cid, parent = NO_PARENT, options.get("backing_file", "")
        if parent:
            if kind.endswith("Flat"):
                raise UsageError("a flat VMDK cannot have a parent")
            parent_cid, size = _parent(storage, parent, size)
        size = -(-size // SECTOR) * SECTOR
        extents = _make_extents(storage, kind, size)
        text = format_descriptor(
            kind, extents, cid=int.from_bytes(os.urandom(4)) % 0xFFFFFFFE, size=size,
            parent_cid=parent_cid, parent_name=parent, adapter=adapter,
            hardware=int(options.get("hwversion", "4")),
        )  # fmt: skip
        place = SECTOR if kind == "monolithicSparse" else 0
        if place and len(text) > _DESCRIPTOR_SECTORS * SECTOR:
            raise UsageError("the name of the parent is too long for a VMDK")
        storage.pwrite(place, text)


def _parent(storage: Storage, name: str, size: int) -> tuple[int, int]:
    """Return CID and size of the parent."""
    with FileStorage(os.path.join(os.path.dirname(storage.name), name)) as file:
        if not FORMAT.probe(file):
            raise UnsupportedImage("the parent of a VMDK must itself be a VMDK")
        try:
            parent = VmdkImage(file, OpenOptions(with_backing=False))
        except ImageError as error:
            raise UnsupportedImage(
                f"the parent cannot be used: {error.message}",
                hint="a parent made of several files cannot be named at creation yet",
            ) from error
        return parent.descriptor.cid, size or parent.virtual_size


def _make_extents(storage: Storage, kind: str, size: int) -> list[ExtentLine]:
    if kind == "monolithicSparse":
        write_sparse(storage, size, _DESCRIPTOR_SECTORS)
        name = os.path.basename(final_name(storage.name))
        return [ExtentLine("RW", size // SECTOR, "SPARSE", name)]
    flat = kind.endswith("Flat")
    lines = []
    for name, length in _extent_files(storage.name, kind, size):
        lines.append(ExtentLine("RW", length // SECTOR, "FLAT" if flat else "SPARSE", name))
        path = os.path.join(os.path.dirname(storage.name), name)
        with FileStorage(path, writable=True, create=True) as file:
            file.truncate(0)
            if flat:
                file.truncate(length)
            else:
                write_sparse(file, length, 0)
    return lines


def _extent_files(path: str, kind: str, size: int) -> Iterator[tuple[str, int]]:
    """Yield (name beside the descriptor, length) of the extents."""
    stem = os.path.basename(path).removesuffix(".vmdk")
    if kind == "monolithicFlat":
        if size:
            yield f"{stem}-flat.vmdk", size
        return
    letter = "f" if kind.endswith("Flat") else "s"
    for number, start in enumerate(range(0, size, _SPLIT), 1):
        yield f"{stem}-{letter}{number:03}.vmdk", min(_SPLIT, size - start)


def write_sparse(storage: Storage, size: int, descriptor_sectors: int) -> None:
    """Write an empty sparse extent: both directories with all their tables."""
    sectors = size // SECTOR
    tables = -(-sectors // (_GRAIN * _TABLE_ENTRIES))
    if tables * _TABLE_ENTRIES * _GRAIN > 1 << 32:
        raise OutOfBounds("a sparse VMDK extent cannot be larger than 2 TiB")
    directory_sectors = -(-4 * tables // SECTOR)
    table_sectors = 4 * _TABLE_ENTRIES // SECTOR
    spare = 1 + descriptor_sectors
    first = spare + directory_sectors + tables * table_sectors
    end = first + directory_sectors + tables * table_sectors
    overhead = -(-end // _GRAIN) * _GRAIN
    header = SparseHeader(
        FLAG_NEWLINE | FLAG_SPARE | FLAG_ZERO, sectors, _GRAIN,
        1 if descriptor_sectors else 0, descriptor_sectors, _TABLE_ENTRIES, spare, first,
        overhead, version=2,
    )  # fmt: skip
    storage.truncate(overhead * SECTOR)
    storage.pwrite(0, header.pack())
    for directory in (spare, first):
        start = directory + directory_sectors
        places = [start + i * table_sectors for i in range(tables)]
        storage.pwrite(directory * SECTOR, struct.pack(f"<{tables}I", *places))


FORMAT = VmdkFormat()
