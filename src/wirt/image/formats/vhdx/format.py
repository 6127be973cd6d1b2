"""Recognising, opening and making VHDX files."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping

from wirt.errors import OutOfBounds, UsageError
from wirt.image.base import Format, Image, OpenOptions, Storage
from wirt.image.formats.mapped import refuse_unknown
from wirt.image.formats.vhdx.image import (
    MAX_SIZE,
    PRESENT,
    VhdxImage,
    locator_of,
    open_parent,
    table_entries,
)
from wirt.image.formats.vhdx.structures import (
    HEADER_OFFSETS,
    MIB,
    REGION_OFFSETS,
    SIGNATURE,
    Header,
    Metadata,
    pack_regions,
)
from wirt.units import parse_size

_OPTIONS = ("subformat", "block_size", "log_size", "sector_size", "backing_file", "backing_fmt")
_DEFAULT_BLOCKS = ((32 << 30, 8 * MIB), (100 << 30, 16 * MIB), (1 << 40, 32 * MIB))


class VhdxFormat(Format):
    name = "vhdx"
    suffixes = (".vhdx", ".avhdx")
    images = (VhdxImage,)
    has_backing = True

    def probe(self, storage: Storage) -> bool:
        return storage.pread(0, 8) == SIGNATURE

    def open(self, storage: Storage, options: OpenOptions) -> Image:
        image = VhdxImage(storage, options)
        if image.metadata.has_parent and options.with_backing:
            image.backing = open_parent(image, options)
        return image

    def create(self, storage: Storage, size: int, options: Mapping[str, str]) -> None:
        """Options: ``subformat`` (dynamic, fixed), ``block_size``, ``log_size``, ``sector_size``
        (512, 4096), ``backing_file`` (a differencing disk).
        """  # fmt: skip
        refuse_unknown(options, *_OPTIONS)
        kind = options.get("subformat", "dynamic")
        if kind not in {"dynamic", "fixed"}:
            raise UsageError(f"Invalid parameter '{kind}'", hint="subformat: dynamic or fixed")
        sector = _number(options, "sector_size", 512)
        parent = options.get("backing_file", "")
        locator: dict[str, str] = {}
        if parent:
            found, locator = locator_of(storage, parent)
            size, sector = size or found.virtual_size, found.metadata.sector_size
        size = -(-size // sector) * sector
        block = _number(options, "block_size", 0) or _default_block(size)
        if sector not in {512, 4096} or block & (block - 1) or not MIB <= block <= 256 * MIB:
            raise UsageError("a VHDX has sectors of 512 or 4096 bytes, blocks of 1 to 256 MiB")
        if size > MAX_SIZE:
            raise OutOfBounds("a VHDX disk cannot be larger than 64 TiB")
        log = _number(options, "log_size", MIB)
        if log % MIB or not MIB <= log < 1 << 32:
            raise UsageError("the log of a VHDX is made of whole MiB, less than 4 GiB")
        metadata = Metadata(
            size, block, sector, bool(parent), kind == "fixed", os.urandom(16), locator=locator
        )
        _write(storage, metadata, log)


def _number(options: Mapping[str, str], name: str, default: int) -> int:
    return parse_size(options[name]) if name in options else default


def _default_block(size: int) -> int:
    return next((block for limit, block in _DEFAULT_BLOCKS if size <= limit), 64 * MIB)


def _write(storage: Storage, metadata: Metadata, log: int) -> None:
    count = table_entries(metadata)
    region = (MIB + log, MIB)
    bat = (sum(region), max(MIB, -(-8 * count // MIB) * MIB))
    storage.pwrite(0, SIGNATURE + "wirt".encode("utf-16-le"))
    ids = os.urandom(16), os.urandom(16)
    for sequence, offset in enumerate(HEADER_OFFSETS, 1):
        storage.pwrite(offset, Header(sequence, *ids, log_length=log).pack())
    for offset in REGION_OFFSETS:
        storage.pwrite(offset, pack_regions(bat, region))
    storage.pwrite(region[0], metadata.pack())
    end = sum(bat)
    if metadata.fixed:
        blocks = -(-metadata.virtual_size // metadata.block_size)
        ratio = (1 << 23) * metadata.sector_size // metadata.block_size
        table = [0] * count
        for index in range(blocks):
            table[index + index // ratio] = end + index * metadata.block_size | PRESENT
        storage.pwrite(bat[0], struct.pack(f"<{count}Q", *table))
        end += blocks * metadata.block_size
    storage.truncate(end)


FORMAT = VhdxFormat()
