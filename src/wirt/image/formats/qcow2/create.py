"""Writes a new, empty image. Options are those of ``qemu-img create -o``."""

from __future__ import annotations

from array import array
from collections.abc import Mapping as Options

import msgspec

from wirt.errors import UnsupportedImage, UsageError
from wirt.image.base import Storage
from wirt.image.formats.qcow2 import extensions
from wirt.image.formats.qcow2.extensions import Extension, pack_feature_names
from wirt.image.formats.qcow2.header import (
    AUTOCLEAR_RAW_DATA,
    COMPRESSION,
    COMPRESSION_NAMES,
    EXTENDED_L2,
    EXTERNAL_DATA,
    LAZY_REFCOUNTS,
    MAX_L1_BYTES,
    ZLIB,
    ZSTD,
    Header,
)
from wirt.image.formats.qcow2.header_store import pack_header
from wirt.image.formats.qcow2.widths import pack_counts
from wirt.image.formats.qcow2.words import words_to
from wirt.units import parse_size

_SWITCH = {"on": True, "off": False, "yes": True, "no": False, "true": True, "false": False}
_KNOWN = frozenset(
    {
        "backing_file",
        "backing_fmt",
        "cluster_size",
        "compat",
        "compression_type",
        "data_file",
        "data_file_raw",
        "encryption",
        "extended_l2",
        "lazy_refcounts",
        "preallocation",
        "refcount_bits",
        "size",
    }
)
_NEWER = "(use version=v3 or greater)"
_WIDTHS = (
    f"Different refcount widths than 16 bits require compatibility level 1.1 or above {_NEWER}"
)
PREALLOCATIONS = ("off", "metadata", "falloc", "full")


class CreateOptions(msgspec.Struct, frozen=True):
    version: int = 3
    cluster_bits: int = 16
    refcount_order: int = 4
    lazy_refcounts: bool = False
    extended_l2: bool = False
    compression: int = ZLIB
    backing_file: str | None = None
    backing_format: str | None = None
    data_file: str | None = None
    data_file_raw: bool = False
    preallocation: str = "off"
    encrypted: bool = False

    @classmethod
    def parse(cls, options: Options[str, str]) -> CreateOptions:
        """Raises UsageError for anything that qcow2 does not have."""
        unknown = sorted(k for k in options if k not in _KNOWN and not k.startswith("encrypt."))
        if unknown:
            raise UsageError(f"Invalid parameter '{unknown[0]}'")
        return cls(
            version=_version(options.get("compat", "1.1")),
            cluster_bits=_cluster_bits(options.get("cluster_size", "65536")),
            refcount_order=_refcount_order(options.get("refcount_bits", "16")),
            lazy_refcounts=_switch(options, "lazy_refcounts"),
            extended_l2=_switch(options, "extended_l2"),
            compression=_compression(options.get("compression_type", "zlib")),
            backing_file=options.get("backing_file"),
            backing_format=options.get("backing_fmt"),
            data_file=options.get("data_file"),
            data_file_raw=_switch(options, "data_file_raw"),
            preallocation=_preallocation(options.get("preallocation", "off")),
            encrypted=_encrypted(options),
        ).checked()

    def checked(self) -> CreateOptions:
        """Refuse combinations that the format does not have, in QEMU's words."""
        problems = (
            (
                self.version < 3 and self.lazy_refcounts,
                f"Lazy refcounts only supported with compatibility level 1.1 and above {_NEWER}",
            ),
            (
                self.version < 3 and self.refcount_order != 4,
                _WIDTHS,
            ),
            (
                self.version < 3 and self.compression != ZLIB,
                "Compression types other than zlib need compatibility level 1.1 and above",
            ),
            (
                self.version < 3 and self.extended_l2,
                "Extended L2 entries are only supported with compatibility level 1.1 and above",
            ),
            (
                self.version < 3 and self.data_file is not None,
                "External data files are only supported with compatibility level 1.1 and above",
            ),
            (
                self.extended_l2 and self.cluster_bits < 14,
                "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
            ),
            (self.data_file_raw and self.data_file is None, "data-file-raw requires data-file"),
            (
                self.data_file_raw and self.backing_file is not None,
                "Backing file and data-file-raw cannot be used at the same time",
            ),
            (
                self.backing_format is not None and self.backing_file is None,
                "Backing format cannot be used without backing file",
            ),
        )
        for wrong, message in problems:
            if wrong:
                raise UsageError(message)
        return self


def _switch(options: Options[str, str], name: str) -> bool:
    text = options.get(name, "off")
    if text not in _SWITCH:
        raise UsageError(f"Parameter '{name}' expects 'on' or 'off'")
    return _SWITCH[text]


def _version(text: str) -> int:
    versions = {"0.10": 2, "v2": 2, "1.1": 3, "v3": 3}
    if text not in versions:
        raise UsageError(f"Parameter 'version' does not accept value '{text}'", hint="0.10 or 1.1")
    return versions[text]


def _cluster_bits(text: str) -> int:
    size = parse_size(text)
    if size & (size - 1) or not 512 <= size <= 2 << 20:
        raise UsageError("Cluster size must be a power of two between 512 and 2048k")
    return size.bit_length() - 1


def _refcount_order(text: str) -> int:
    bits = int(text) if text.isdigit() and len(text) < 4 else 0
    if bits not in {1, 2, 4, 8, 16, 32, 64}:
        raise UsageError("Refcount width must be a power of two and may not exceed 64 bits")
    return bits.bit_length() - 1


def _compression(text: str) -> int:
    for number, name in COMPRESSION_NAMES.items():
        if name == text:
            return number
    raise UsageError(
        f"Parameter 'compression-type' does not accept value '{text}'", hint="zlib or zstd"
    )


def _encrypted(options: Options[str, str]) -> bool:
    kind = options.get("encrypt.format", "aes" if _switch(options, "encryption") else "")
    if kind not in {"", "luks"}:
        raise UsageError(
            "Use of AES-CBC encrypted qcow2 images is no longer supported",
            hint="choose encrypt.format=luks",
        )
    return kind == "luks"


def _preallocation(text: str) -> str:
    if text not in PREALLOCATIONS:
        raise UsageError(f"Parameter 'preallocation' does not accept value '{text}'")
    return text


def new_header(size: int, options: CreateOptions) -> Header:
    """Return the header of an empty image. Raises UnsupportedImage if it is too large."""
    header = Header(
        version=options.version,
        cluster_bits=options.cluster_bits,
        size=size,
        refcount_order=options.refcount_order,
        compression=options.compression,
        backing_name=options.backing_file,
    )
    if options.version >= 3:
        header.header_length = 112
        header.tail = bytes((options.compression,)).ljust(8, b"\0")
        header.compatible = LAZY_REFCOUNTS if options.lazy_refcounts else 0
        header.incompatible = (
            (COMPRESSION if options.compression == ZSTD else 0)
            | (EXTENDED_L2 if options.extended_l2 else 0)
            | (EXTERNAL_DATA if options.data_file is not None else 0)
        )
        header.autoclear = AUTOCLEAR_RAW_DATA if options.data_file_raw else 0
        header.extensions.append(Extension(extensions.FEATURE_NAMES, pack_feature_names()))
    if options.backing_format is not None:
        header.set_extension(extensions.BACKING_FORMAT, _encode(options.backing_format))
    if options.data_file is not None:
        header.set_extension(extensions.DATA_FILE_NAME, _encode(options.data_file))
    header.l1_size = header.l1_entries_for(size)
    if header.l1_size * 8 > MAX_L1_BYTES:
        raise UnsupportedImage("The image size is too large (try using a larger cluster size)")
    return header


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def write_empty(storage: Storage, header: Header) -> None:
    """Lay out header, refcount table, refcount blocks and L1, in this order, and flush."""
    size = header.cluster_size
    l1_clusters = -(-header.l1_size * 8 // size)
    table, blocks = refcount_layout(1 + l1_clusters, header)
    used = 1 + table + blocks + l1_clusters
    header.reftable_offset, header.reftable_clusters = size, table
    header.l1_offset = (1 + table + blocks) * size if l1_clusters else 0
    counts = array(count_typecode(header), [1]) * used
    counts.extend(
        array(count_typecode(header), bytes(counts.itemsize))
        * (blocks * header.refcounts_per_block - used)
    )
    offsets = array("Q", range((1 + table) * size, (1 + table + blocks) * size, size))
    # As QEMU, which does not fill up the last cluster.
    storage.truncate(header.l1_offset + header.l1_size * 8 if l1_clusters else used * size)
    storage.pwrite((1 + table) * size, pack_counts(counts, header.refcount_order))
    storage.pwrite(size, words_to(offsets))
    storage.flush()
    storage.pwrite(0, pack_header(header))
    storage.flush()


def count_typecode(header: Header) -> str:
    return "BBBBHIQ"[header.refcount_order]


def refcount_layout(others: int, header: Header) -> tuple[int, int]:
    """Return (refcount table clusters, blocks) that count ``others`` clusters and themselves."""
    table, blocks = 1, 1
    while True:
        used = others + table + blocks
        need = -(-used // header.refcounts_per_block)
        room = -(-need * 8 // header.cluster_size)
        if (room, need) == (table, blocks):
            return table, blocks
        table, blocks = room, need
