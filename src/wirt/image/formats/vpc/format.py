"""Recognising, opening and making VHDs."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping

from msgspec.structs import replace

from wirt.errors import ImageError, NotThisFormat, OutOfBounds, UnsupportedImage, UsageError
from wirt.image.base import Format, Image, OpenOptions, Storage
from wirt.image.formats.mapped import SECTOR, refuse_unknown
from wirt.image.formats.vpc.fixed import FixedVpcImage
from wirt.image.formats.vpc.image import DynamicVpcImage, open_parent, parent_of, with_parent
from wirt.image.formats.vpc.structures import (
    ALL_ONES,
    BLOCK,
    DIFFERENCING,
    DYNAMIC,
    EPOCH_2000,
    FIXED,
    MAX_SIZE,
    Footer,
    Header,
    find_footer,
    fitting_geometry,
)

_MIB = 1 << 20


class VpcFormat(Format):
    name = "vpc"
    suffixes = (".vhd",)
    images = (FixedVpcImage, DynamicVpcImage)
    has_backing = True

    def probe(self, storage: Storage) -> bool:
        try:
            head = storage.pread(0, 8)
            footer, _ = find_footer(storage)
        except ImageError:
            return False
        return footer is not None or head == b"conectix"

    def open(self, storage: Storage, options: OpenOptions) -> Image:
        footer, _ = find_footer(storage)
        if footer is None:
            raise NotThisFormat("there is no intact VHD footer")
        if footer.kind == FIXED:
            return FixedVpcImage(storage, footer)
        if footer.kind not in {DYNAMIC, DIFFERENCING}:
            raise UnsupportedImage(f"VHD type {footer.kind} is not known")
        image = DynamicVpcImage(storage, footer, options)
        if image.differencing and options.with_backing:
            image.backing = open_parent(image, options)
        return image

    def create(self, storage: Storage, size: int, options: Mapping[str, str]) -> None:
        """Options: ``subformat`` (dynamic, fixed), ``azure`` (on: fixed, whole MiB),
        ``force_size`` (off: round up to a geometry, for Virtual PC; the default is the exact
        size), ``backing_file`` (differencing).
        """  # fmt: skip
        refuse_unknown(options, "subformat", "azure", "force_size", "backing_file", "backing_fmt")
        kind = options.get("subformat", "dynamic")
        if kind not in {"dynamic", "fixed"}:
            raise UsageError(f"Invalid parameter '{kind}'", hint="subformat: dynamic or fixed")
        azure, exact = _switch(options, "azure", "off"), _switch(options, "force_size", "on")
        if azure:
            kind, size = "fixed", -(-size // _MIB) * _MIB
        size = -(-size // SECTOR) * SECTOR
        parent = options.get("backing_file", "")
        if not exact and not azure and not parent:
            size = fitting_geometry(size // SECTOR) * SECTOR
        now = max(0, int(time.time()) - EPOCH_2000)
        footer = Footer(DYNAMIC, size, SECTOR, uuid.uuid4().bytes, now)
        if kind == "dynamic":
            _create_dynamic(storage, footer, parent)
            return
        if parent:
            raise UsageError("a fixed VHD cannot have a parent")
        storage.truncate(size)
        storage.pwrite(size, replace(footer, kind=FIXED, header_offset=ALL_ONES).pack())


def _switch(options: Mapping[str, str], name: str, default: str) -> bool:
    text = options.get(name, default)
    if text not in {"on", "off"}:
        raise UsageError(f"Invalid parameter '{text[:40]}'", hint=f"{name}: on or off")
    return text == "on"


def _create_dynamic(storage: Storage, footer: Footer, parent: str) -> None:
    if parent:
        size = footer.size or parent_of(storage, parent).virtual_size
        footer = replace(footer, kind=DIFFERENCING, size=size)
    if footer.size > MAX_SIZE:
        raise OutOfBounds("a dynamic VHD cannot be larger than 2040 GiB")
    header = Header(SECTOR + 1024, max(-(-footer.size // BLOCK), 1), BLOCK)
    table = -(-4 * header.entries // SECTOR) * SECTOR
    end = header.table_offset + table
    if parent:
        header, end = with_parent(storage, header, parent, end)
    storage.pwrite(0, footer.pack() + header.pack())
    storage.pwrite(header.table_offset, b"\xff" * table)
    storage.pwrite(end, footer.pack())


FORMAT = VpcFormat()
