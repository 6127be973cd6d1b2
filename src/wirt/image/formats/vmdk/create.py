"""The extents of a new disk."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

from wirt.errors import OutOfBounds
from wirt.image.base import Storage
from wirt.image.formats.mapped import SECTOR
from wirt.image.formats.vmdk.descriptor import ExtentLine
from wirt.image.formats.vmdk.sparse import (
    COWD,
    COWD_TABLE,
    DIRECTORY_AT_END,
    FLAG_COMPRESSED,
    FLAG_MARKERS,
    FLAG_NEWLINE,
    FLAG_SPARE,
    FLAG_ZERO,
    SparseHeader,
)
from wirt.image.replacement import final_name
from wirt.image.storage.file import FileStorage

DESCRIPTOR_SECTORS = 20
SPLIT = 2047 << 20
_KINDS = {
    "monolithicSparse": "SPARSE",
    "monolithicFlat": "FLAT",
    "twoGbMaxExtentSparse": "SPARSE",
    "twoGbMaxExtentFlat": "FLAT",
    "streamOptimized": "SPARSE",
    "vmfs": "VMFS",
    "vmfsSparse": "VMFSSPARSE",
}
SUBFORMATS = tuple(_KINDS)
EMBEDDED = {"monolithicSparse", "streamOptimized"}
WITH_PARENT = {"monolithicSparse", "twoGbMaxExtentSparse", "vmfsSparse"}
_GRAIN = 128
_TABLE_ENTRIES = 512
_LONGEST_COWD = 2 << 40


def make_extents(storage: Storage, kind: str, size: int) -> list[ExtentLine]:
    """Make the extents of an empty disk; return their lines for the descriptor."""
    word = _KINDS[kind]
    if kind in EMBEDDED:
        write = write_stream if kind == "streamOptimized" else write_sparse
        write(storage, size, DESCRIPTOR_SECTORS)
        name = os.path.basename(final_name(storage.name))
        return [ExtentLine("RW", size // SECTOR, word, name)]
    lines = []
    for name, length in extent_files(storage.name, kind, size):
        lines.append(ExtentLine("RW", length // SECTOR, word, name))
        path = os.path.join(os.path.dirname(storage.name), name)
        with FileStorage(path, writable=True, create=True) as file:
            file.truncate(0)
            if word in {"FLAT", "VMFS"}:
                file.truncate(length)
            elif word == "VMFSSPARSE":
                write_cowd(file, length)
            else:
                write_sparse(file, length, 0)
    return lines


def extent_files(path: str, kind: str, size: int) -> Iterator[tuple[str, int]]:
    """Yield (name beside the descriptor, length) of the extents."""
    if not kind.startswith("twoGb"):
        word = "delta" if kind == "vmfsSparse" else "flat"
        if size:
            yield f"{_stem(path)}-{word}.vmdk", size
        return
    for number, start in enumerate(range(0, size, SPLIT), 1):
        name = split_name(path, number, flat=kind.endswith("Flat"))
        yield name, min(SPLIT, size - start)


def split_name(path: str, number: int, *, flat: bool) -> str:
    return f"{_stem(path)}-{'f' if flat else 's'}{number:03}.vmdk"


def _stem(path: str) -> str:
    return os.path.basename(path).removesuffix(".vmdk")


def write_cowd(storage: Storage, size: int) -> None:
    """Write an empty COWD extent: grains of one sector, tables made when they are used."""
    if size > _LONGEST_COWD:
        raise OutOfBounds("a vmfsSparse VMDK cannot be larger than 2 TiB")
    sectors = size // SECTOR
    tables = -(-sectors // COWD_TABLE)
    end = 4 + -(-4 * tables // SECTOR)
    head = COWD + struct.pack("<7I", 1, 3, sectors, 1, 4, tables, end)
    storage.pwrite(0, head.ljust(4 * SECTOR, b"\0"))
    storage.truncate(end * SECTOR)


def write_stream(storage: Storage, size: int, descriptor_sectors: int) -> None:
    """Write the header of a stream, whose directory comes last."""
    header = SparseHeader(
        FLAG_NEWLINE | FLAG_COMPRESSED | FLAG_MARKERS, size // SECTOR, _GRAIN, 1,
        descriptor_sectors, _TABLE_ENTRIES, 0, DIRECTORY_AT_END, _GRAIN, compression=1, version=3,
    )  # fmt: skip
    storage.truncate(_GRAIN * SECTOR)
    storage.pwrite(0, header.pack())


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
