"""Changing what an image is, not what it holds: ``amend``, the backing link, emptying."""

from __future__ import annotations

from array import array
from collections.abc import Mapping as Options

from wirt.errors import UnsupportedImage, UsageError
from wirt.image.formats.qcow2.create import CreateOptions
from wirt.image.formats.qcow2.extensions import (
    BACKING_FORMAT,
    BITMAPS,
    DATA_FILE_NAME,
    FEATURE_NAMES,
    pack_feature_names,
)
from wirt.image.formats.qcow2.header import (
    AUTOCLEAR_RAW_DATA,
    LAZY_REFCOUNTS,
    Header,
)
from wirt.image.formats.qcow2.l2 import COMPRESSED, OFFSET, ZERO
from wirt.image.formats.qcow2.mapping import load_l1, load_l2
from wirt.image.formats.qcow2.repair import rebuild_refcounts
from wirt.image.formats.qcow2.shadow import shadow
from wirt.image.formats.qcow2.snapshot import drop_tree
from wirt.image.formats.qcow2.snapshot_table import read_snapshots
from wirt.image.formats.qcow2.volume import Volume
from wirt.image.formats.qcow2.words import words_to
from wirt.image.formats.qcow2.writer import Writer


def set_backing(volume: Volume, name: str | None, backing_format: str | None) -> None:
    """Change the backing link in the header; durable when it returns."""
    volume.commit()
    header = volume.header
    if name is not None and header.raw_data_file:
        raise UnsupportedImage("a raw external data file cannot have a backing image")
    header.backing_name = name
    stored = backing_format.encode() if name is not None and backing_format else None
    header.set_extension(BACKING_FORMAT, stored)
    volume.header_store.write_all()


def make_empty(volume: Volume) -> None:
    """Drop all clusters of the active disk: its backing image shows everywhere."""
    with shadow(volume) as change:
        header, old = volume.header, volume.mapping.l1.words
        drop_tree(change, old, header.l1_offset)
        change.switch(l1_offset=change.place(words_to(array("Q", bytes(len(old) * 8)))))


def amend(writer: Writer, options: Options[str, str]) -> None:
    """Change options as ``qemu-img amend`` does. Raises UsageError for what is fixed."""
    volume, header = writer.volume, writer.volume.header
    if options.get("compat", "1.1") not in {"0.10", "v2", "1.1", "v3"}:
        raise UsageError(f"Unknown compatibility level {options['compat']}")
    wanted = CreateOptions.parse(_complete(header, options))
    _refuse_fixed(header, wanted, options)
    volume.commit()
    if wanted.version == 3 and header.version == 2:
        _upgrade(header)
    if wanted.refcount_order != header.refcount_order:
        rebuild_refcounts(volume, wanted.refcount_order)
    _set_switches(header, wanted, options)
    if wanted.version == 2 and header.version == 3:
        _downgrade(writer)
    volume.header_store.write_all()
    volume.reload()


def _complete(header: Header, options: Options[str, str]) -> dict[str, str]:
    """Return the image's own options, overlaid with the given ones."""
    present = {
        "compat": "1.1" if header.version == 3 else "0.10",
        "cluster_size": str(header.cluster_size),
        "refcount_bits": str(1 << header.refcount_order),
        "extended_l2": "on" if header.extended_l2 else "off",
        "compression_type": "zstd" if header.compression else "zlib",
        "lazy_refcounts": "on" if header.compatible & LAZY_REFCOUNTS else "off",
        "data_file_raw": "on" if header.raw_data_file else "off",
    }
    if header.has_data_file:
        present["data_file"] = header.data_file_name or ""
    if options.get("compat") in {"0.10", "v2"}:
        present["lazy_refcounts"] = "off"
    merged = present | dict(options)
    if "backing_file" not in merged:
        merged.pop("backing_fmt", None)
    return merged


def _refuse_fixed(header: Header, wanted: CreateOptions, options: Options[str, str]) -> None:
    fixed = (
        (wanted.cluster_bits != header.cluster_bits, "Changing the cluster size"),
        (wanted.extended_l2 != header.extended_l2, "Changing extended L2 entries"),
        (wanted.compression != header.compression, "Changing the compression type"),
        ((wanted.data_file is not None) != header.has_data_file, "Adding a data file"),
        (wanted.data_file_raw and not header.raw_data_file, "Making a data file raw"),
        ("preallocation" in options, "Changing the preallocation"),
        (any(name.startswith("encr") for name in options), "Changing the encryption"),
    )
    for changes, what in fixed:
        if changes:
            raise UsageError(f"{what} is not supported", hint="convert the image instead")


def _set_switches(header: Header, wanted: CreateOptions, options: Options[str, str]) -> None:
    if header.version == 3:
        header.compatible &= ~LAZY_REFCOUNTS
        header.compatible |= LAZY_REFCOUNTS if wanted.lazy_refcounts else 0
    if header.has_data_file:
        if not wanted.data_file_raw:
            header.autoclear &= ~AUTOCLEAR_RAW_DATA
        name = (wanted.data_file or "").encode("utf-8", "surrogateescape")
        header.set_extension(DATA_FILE_NAME, name or None)
    if "backing_file" in options:
        header.backing_name = wanted.backing_file or None
        stored = wanted.backing_format.encode() if wanted.backing_format else None
        header.set_extension(BACKING_FORMAT, stored if header.backing_name else None)


def _upgrade(header: Header) -> None:
    header.version, header.header_length, header.tail = 3, 112, bytes(8)
    header.set_extension(FEATURE_NAMES, pack_feature_names())


def _downgrade(writer: Writer) -> None:
    volume, header = writer.volume, writer.volume.header
    if header.incompatible or header.refcount_order != 4:
        raise UnsupportedImage(
            "the image uses features that version 2 does not have",
            hint="amend refcount_bits=16 first, or convert the image",
        )
    if header.extension(BITMAPS) is not None:
        raise UnsupportedImage("version 2 images have no bitmaps", hint="remove them first")
    if any(item.virtual_size != header.size for item in read_snapshots(volume.storage, header)[0]):
        raise UnsupportedImage("Internal snapshots prevent downgrade of image")
    _refuse_zero_snapshots(volume)
    _expand_zeroes(writer)
    volume.commit()
    header.version, header.header_length, header.tail = 2, 72, b""
    header.compatible = header.autoclear = 0
    header.set_extension(FEATURE_NAMES, None)


def _refuse_zero_snapshots(volume: Volume) -> None:
    for snapshot in read_snapshots(volume.storage, volume.header)[0]:
        for word in load_l1(volume.storage, snapshot.l1_offset, snapshot.l1_size).words:
            if word & OFFSET and _has_zeroes(load_l2(volume.storage, volume.header, word)):
                raise UnsupportedImage("a snapshot has zero clusters, which version 2 lacks")


def _has_zeroes(words: array[int]) -> bool:
    return any(entry & ZERO and not entry & COMPRESSED for entry in words)


def _expand_zeroes(writer: Writer) -> None:
    """Version 2 knows no zero clusters: give them zeros as data, or no cluster at all."""
    volume = writer.volume
    size, shift = volume.header.cluster_size, volume.mapping.shift
    for index in range(len(volume.mapping.l1.words)):
        found = volume.mapping.table(index)
        if found is None or not _has_zeroes(found.words):
            continue
        table = writer.table_for(index << shift)
        for slot, entry in enumerate(table.words):
            if not entry & ZERO or entry & COMPRESSED:
                continue
            writer.give_back(entry)
            table.words[slot] = 0
            table.touch(slot, slot + 1)
            if volume.header.backing_name:
                offset = (index << shift) + slot * size
                host = volume.refcounts.allocate(1)[0] * size
                volume.write_data(host, bytes(size))
                writer.link(table, writer.slot_of(offset), host, 1, keep_old=True)
        volume.relieve()
