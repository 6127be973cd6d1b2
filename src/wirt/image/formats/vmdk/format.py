"""Recognising, opening and making VMDK files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from wirt.errors import UsageError
from wirt.image.base import Format, Image, OpenOptions, Storage
from wirt.image.formats.mapped import SECTOR, refuse_unknown
from wirt.image.formats.vmdk.create import (
    DESCRIPTOR_SECTORS,
    EMBEDDED,
    SUBFORMATS,
    WITH_PARENT,
    extent_files,
    make_extents,
)
from wirt.image.formats.vmdk.descriptor import NO_PARENT, format_descriptor
from wirt.image.formats.vmdk.descriptor_text import parent_of
from wirt.image.formats.vmdk.image import VmdkImage, open_parent
from wirt.image.formats.vmdk.sparse import COWD, KDMV
from wirt.image.formats.vmdk.stream import StreamVmdkImage, is_new_stream

_ADAPTERS = ("ide", "lsilogic", "buslogic", "legacyESX")


class VmdkFormat(Format):
    name = "vmdk"
    suffixes = (".vmdk",)
    images = (VmdkImage, StreamVmdkImage)
    has_backing = True
    has_compression = True

    def probe(self, storage: Storage) -> bool:
        head = storage.pread(0, 512)
        if head[:4] in {KDMV, COWD}:
            return True
        first = next((line for line in head.splitlines() if line.strip()), b"")
        return first.strip() == b"# Disk DescriptorFile"

    def open(self, storage: Storage, options: OpenOptions) -> Image:
        if options.writable and is_new_stream(storage):
            return StreamVmdkImage(storage)
        image = VmdkImage(storage, options)
        if image.has_parent and options.with_backing:
            image.backing = open_parent(image, options)
        return image

    def companions(self, path: str, size: int, options: Mapping[str, str]) -> Sequence[str]:
        kind = options.get("subformat", SUBFORMATS[0])
        if kind in EMBEDDED:
            return ()
        names = [name for name, _ in extent_files(path, kind, -(-size // SECTOR) * SECTOR)]
        return [os.path.join(os.path.dirname(path), name) for name in names]

    def create(self, storage: Storage, size: int, options: Mapping[str, str]) -> None:
        """Options: ``subformat``, ``adapter_type``, ``hwversion``, ``backing_file``."""
        refuse_unknown(
            options, "subformat", "adapter_type", "hwversion", "backing_file", "backing_fmt"
        )
        kind = options.get("subformat", "monolithicSparse")
        adapter = options.get("adapter_type", "ide")
        if kind not in SUBFORMATS or adapter not in _ADAPTERS:
            raise UsageError(
                f"a VMDK cannot be made as {kind[:40]!r} for {adapter[:40]!r}",
                hint=f"{', '.join(SUBFORMATS)}; {', '.join(_ADAPTERS)}",
            )
        parent_cid, parent = NO_PARENT, options.get("backing_file", "")
        if parent:
            if kind not in WITH_PARENT:
                raise UsageError(f"a {kind} VMDK cannot have a parent")
            parent_cid, parent_size = parent_of(storage, parent)
            size = size or parent_size
        size = -(-size // SECTOR) * SECTOR
        extents = make_extents(storage, kind, size)
        text = format_descriptor(
            kind, extents, cid=int.from_bytes(os.urandom(4)) % 0xFFFFFFFE, size=size,
            parent_cid=parent_cid, parent_name=parent, adapter=adapter,
            hardware=_hardware(options),
        )  # fmt: skip
        place = SECTOR if kind in EMBEDDED else 0
        if place and len(text) > DESCRIPTOR_SECTORS * SECTOR:
            raise UsageError("the name of the parent is too long for a VMDK")
        storage.pwrite(place, text)


def _hardware(options: Mapping[str, str]) -> int:
    text = options.get("hwversion", "4")
    if not text.isdecimal() or len(text) > 3:
        raise UsageError(f"hwversion must be a number, not {text[:40]!r}")
    return int(text)


FORMAT = VmdkFormat()
