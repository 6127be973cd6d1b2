"""Where the files of a directory lie on the FAT disk that shows them.

A hard disk begins with a partition table (MBR); its one partition starts at sector 63. A
floppy has none. Directories come first, then the files, each in neighbouring clusters.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from wirt.errors import OutOfBounds, UnsupportedImage, UsageError
from wirt.image.fat.directory import (
    ARCHIVE,
    DIRECTORY,
    READ_ONLY,
    VOLUME,
    ShortNames,
    fat_moment,
    pack_entry,
    pack_long_name,
    volume_label,
)
from wirt.image.fat.volume import (
    ENTRY,
    FIRST_CLUSTER,
    SECTOR,
    TABLES,
    Volume,
    boot_sectors,
    pack_table,
    plan_volume,
)
from wirt.image.formats.vvfat.tree import Node, Tree

_HEADS, _TRACK = 16, 63
_CYLINDER = _HEADS * _TRACK
_USUAL_CYLINDERS = 1024  # 504 MiB: what a BIOS of FAT's days could reach
_FLOPPY_SECTORS = 2880
_FLOPPY_ROOT = 224
_HARD_DISK_ROOT = 512
_LARGEST_16 = (2 << 30) // SECTOR
_PARTITION_TYPE = {12: 0x01, 16: 0x06, 32: 0x0C}


class Piece(msgspec.Struct, frozen=True):
    """Bytes of the disk: given here, or those of a file of the host."""

    offset: int
    length: int
    content: bytes = b""
    node: Node | None = None


class Layout(msgspec.Struct, frozen=True):
    """The whole disk; between the pieces there are zeros."""

    volume: Volume
    start: int
    """Where the volume begins, in bytes."""
    size: int
    pieces: tuple[Piece, ...]


def lay_out(tree: Tree, *, bits: int, floppy: bool, label: str, metadata_bytes: int) -> Layout:
    """Return the disk of ``tree``; ``bits`` 0 chooses FAT16, or FAT32 where that is needed.

    Raises UnsupportedImage if the files do not fit, OutOfBounds over ``metadata_bytes``.
    """
    volume = _floppy(bits) if floppy else _hard_disk(tree, bits)
    needed = _place(tree.top, volume)
    if needed - FIRST_CLUSTER > volume.clusters:
        raise UnsupportedImage(
            f"the files need {(needed - FIRST_CLUSTER) * volume.cluster_bytes >> 10} KiB, and "
            f"FAT{volume.bits} has {volume.clusters * volume.cluster_bytes >> 10} KiB",
            path=tree.directory,
            hint="fat:32:DIRECTORY has room",
        )
    start = volume.hidden * SECTOR
    size = start + volume.sectors * SECTOR
    if not floppy:
        size = -(-size // (_CYLINDER * SECTOR)) * _CYLINDER * SECTOR
    pieces = sorted(_pieces(tree, volume, start, label), key=lambda piece: piece.offset)
    if sum(len(piece.content) for piece in pieces) > metadata_bytes:
        raise OutOfBounds("the tables of the disk are over the budget for metadata")
    return Layout(volume, start, size, tuple(pieces))


def _floppy(bits: int) -> Volume:
    if bits not in {0, 12}:
        raise UsageError(f"a floppy is FAT12, not FAT{bits}")
    return Volume(12, _FLOPPY_SECTORS, 1, _FLOPPY_ROOT, 0, 0xF0, heads=2, track=18)


def _hard_disk(tree: Tree, bits: int) -> Volume:
    """Take the usual disk; a larger one, with a quarter to spare, where the files need it."""
    nodes = list(tree.top.walk())
    # Whole clusters of the largest size, and what a directory entry with a long name takes.
    used = sum(node.size + 64 * SECTOR + 22 * ENTRY for node in nodes) // SECTOR
    usual = (16 if bits == 12 else _USUAL_CYLINDERS) * _CYLINDER
    sectors = max(usual, -(-used * 5 // 4 // _CYLINDER) * _CYLINDER) - _TRACK
    if not bits:
        root = len(tree.top.children) * 4 < _HARD_DISK_ROOT
        bits = 16 if sectors <= _LARGEST_16 and root else 32
    try:
        return plan_volume(bits, sectors, hidden=_TRACK)
    except UsageError as error:
        raise UnsupportedImage(
            f"{error.message}, which these files need",
            path=tree.directory,
            hint="fat:32:DIRECTORY has room" if bits < 32 else "",
        ) from error


def _place(top: Node, volume: Volume) -> int:
    """Give clusters to all nodes; return the first free one."""
    nodes = list(top.walk())
    free = FIRST_CLUSTER
    for node in sorted(nodes, key=lambda node: not node.is_directory):
        size = _directory_size(node) if node.is_directory else node.size
        fixed_root = node is top and volume.root_entries
        node.count = 0 if fixed_root else -(-size // volume.cluster_bytes)
        node.first = free if node.count else 0
        free += node.count
        if fixed_root and size > volume.root_entries * ENTRY:
            raise UnsupportedImage(
                f"the root of FAT{volume.bits} holds {volume.root_entries} entries",
                hint="fat:32:DIRECTORY has room, or put the files into a directory",
            )
    return free


def _directory_size(node: Node) -> int:
    return len(_directory(node, None)) + ENTRY


def _directory(node: Node, parent: Node | None) -> bytes:
    """Return the entries; ``parent`` is None for the root, which has no ``.`` and ``..``."""
    out = bytearray()
    moment = fat_moment(node.modified)
    if node.path:
        above = parent.first if parent is not None and parent.path else 0
        out += pack_entry(b".".ljust(11), DIRECTORY, node.first, 0, moment)
        out += pack_entry(b"..".ljust(11), DIRECTORY, above, 0, moment)
    names = ShortNames()
    for child in node.children:
        short, needs_long = names.add(child.name)
        if needs_long:
            out += pack_long_name(child.name, short)
        kind = DIRECTORY if child.is_directory else ARCHIVE
        attributes = kind | (READ_ONLY if child.read_only else 0)
        size = 0 if child.is_directory else child.size
        out += pack_entry(short, attributes, child.first, size, fat_moment(child.modified))
    return bytes(out)


def _pieces(tree: Tree, volume: Volume, start: int, label: str) -> Iterator[Piece]:
    mark = volume_label(label)
    if start:
        yield _piece(0, _partition_table(volume))
    yield _piece(start, boot_sectors(volume, mark))
    nodes = sorted((n for n in tree.top.walk() if n.count), key=lambda node: node.first)
    table = pack_table(volume, ((node.first, node.count) for node in nodes))
    for number in range(TABLES):
        place = volume.reserved + number * volume.table_sectors
        yield _piece(start + place * SECTOR, table)
    yield from _directories(tree, volume, start, pack_entry(mark, VOLUME, 0, 0))
    for node in nodes:
        if not node.is_directory:
            place = start + volume.cluster_offset(node.first)
            yield Piece(place, node.size, node=node)


def _directories(tree: Tree, volume: Volume, start: int, label: bytes) -> Iterator[Piece]:
    waiting: list[tuple[Node, Node | None]] = [(tree.top, None)]
    while waiting:
        node, parent = waiting.pop()
        content = _directory(node, parent)
        if node is tree.top:
            content = label + content
        place = volume.cluster_offset(node.first) if node.first else volume.root_start * SECTOR
        yield _piece(start + place, content)
        waiting.extend((child, node) for child in node.children if child.is_directory)


def _piece(offset: int, content: bytes) -> Piece:
    return Piece(offset, len(content), content)


def _partition_table(volume: Volume) -> bytes:
    end = volume.hidden + volume.sectors - 1
    entry = struct.pack(
        "<B3sB3sII", 0x80, _chs(volume.hidden), _PARTITION_TYPE[volume.bits], _chs(end),
        volume.hidden, volume.sectors,
    )  # fmt: skip
    return (bytes(440) + b"wirt\0\0" + entry).ljust(510, b"\0") + b"\x55\xaa"


def _chs(sector: int) -> bytes:
    cylinder, rest = divmod(sector, _CYLINDER)
    head, place = divmod(rest, _TRACK)
    if cylinder > 1023:
        return b"\xfe\xff\xff"
    return bytes([head, place + 1 | cylinder >> 8 << 6, cylinder & 0xFF])
