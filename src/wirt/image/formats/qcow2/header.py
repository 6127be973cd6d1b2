r"""The qcow2 header: its first cluster, parsed and packed.

Layout (big-endian), as in QEMU's ``docs/interop/qcow2.txt``::

    0   magic 'QFI\\xfb'         32  crypt method           72  incompatible features (v3)
    4   version, 2 or 3         36  L1 entries             80  compatible features
    8   backing name offset     40  L1 offset              88  autoclear features
    16  backing name length     48  refcount table offset  96  log2 of refcount bits
    20  cluster bits            56  refcount table clusters 100 header length
    24  virtual size            60  snapshots              104 compression method
                                64  snapshot table offset

Extensions follow at ``header length`` and the backing file's name lies behind them, all in
the first cluster. Every field that an operation must switch at once (L1, refcount table,
snapshot table, size) lies in the first 512 bytes, which a disk writes whole or not at all.
"""

from __future__ import annotations

import struct

import msgspec

from wirt.errors import CorruptImage, NotThisFormat, UnsupportedImage
from wirt.image.base import Storage
from wirt.image.formats.qcow2.extensions import (
    BACKING_FORMAT,
    DATA_FILE_NAME,
    FEATURE_NAMES,
    Extension,
    feature_names,
    parse_extensions,
)

MAGIC = b"QFI\xfb"
SECTOR = 512

DIRTY = 1 << 0
CORRUPT = 1 << 1
EXTERNAL_DATA = 1 << 2
COMPRESSION = 1 << 3
EXTENDED_L2 = 1 << 4
KNOWN_INCOMPATIBLE = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION | EXTENDED_L2

LAZY_REFCOUNTS = 1 << 0

AUTOCLEAR_BITMAPS = 1 << 0
AUTOCLEAR_RAW_DATA = 1 << 1
KNOWN_AUTOCLEAR = AUTOCLEAR_BITMAPS | AUTOCLEAR_RAW_DATA

CRYPT_NONE, CRYPT_AES, CRYPT_LUKS = 0, 1, 2
ZLIB, ZSTD = 0, 1
COMPRESSION_NAMES = {ZLIB: "zlib", ZSTD: "zstd"}

MAX_L1_BYTES = 32 << 20
MAX_REFTABLE_BYTES = 8 << 20
MAX_SNAPSHOTS = 65536
MAX_NAME = 1023

_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")


class Header(msgspec.Struct):
    version: int
    cluster_bits: int
    size: int
    l1_size: int = 0
    l1_offset: int = 0
    reftable_offset: int = 0
    reftable_clusters: int = 0
    snapshot_count: int = 0
    snapshots_offset: int = 0
    crypt_method: int = CRYPT_NONE
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    header_length: int = 72
    compression: int = ZLIB
    tail: bytes = b""
    """Header bytes past the known fields, kept as they are."""
    backing_name: str | None = None
    backing_offset: int = 0
    extensions: list[Extension] = msgspec.field(default_factory=list)

    @property
    def cluster_size(self) -> int:
        return 1 << self.cluster_bits

    @property
    def extended_l2(self) -> bool:
        return bool(self.incompatible & EXTENDED_L2)

    @property
    def has_data_file(self) -> bool:
        return bool(self.incompatible & EXTERNAL_DATA)

    @property
    def raw_data_file(self) -> bool:
        return self.has_data_file and bool(self.autoclear & AUTOCLEAR_RAW_DATA)

    @property
    def l2_bits(self) -> int:
        """log2 of the entries of one L2 table."""
        return self.cluster_bits - (4 if self.extended_l2 else 3)

    @property
    def subcluster_size(self) -> int:
        return self.cluster_size >> 5 if self.extended_l2 else self.cluster_size

    @property
    def refcounts_per_block(self) -> int:
        return 1 << (self.cluster_bits + 3 - self.refcount_order)

    def l1_entries_for(self, size: int) -> int:
        shift = self.cluster_bits + self.l2_bits
        return (size + (1 << shift) - 1) >> shift

    def extension(self, kind: int) -> bytes | None:
        """Return the data of an extension; of several the last one counts, as for QEMU."""
        return next((item.data for item in reversed(self.extensions) if item.kind == kind), None)

    def set_extension(self, kind: int, data: bytes | None) -> None:
        """Replace, add or (``None``) remove an extension."""
        kept = [item for item in self.extensions if item.kind != kind]
        self.extensions = kept if data is None else [*kept, Extension(kind, data)]

    @property
    def backing_format(self) -> str | None:
        return _decode(self.extension(BACKING_FORMAT))

    @property
    def data_file_name(self) -> str | None:
        return _decode(self.extension(DATA_FILE_NAME))

    def pack_fields(self) -> bytes:
        """The header proper, without extensions and backing name."""
        name = (self.backing_name or "").encode("utf-8", "surrogateescape")
        fixed = _V2.pack(
            MAGIC,
            self.version,
            self.backing_offset if name else 0,
            len(name),
            self.cluster_bits,
            self.size,
            self.crypt_method,
            self.l1_size,
            self.l1_offset,
            self.reftable_offset,
            self.reftable_clusters,
            self.snapshot_count,
            self.snapshots_offset,
        )
        if self.version == 2:
            return fixed
        features = _V3.pack(
            self.incompatible,
            self.compatible,
            self.autoclear,
            self.refcount_order,
            self.header_length,
        )
        return fixed + features + self.tail

    @classmethod
    def parse(cls, storage: Storage) -> Header:
        """Read and check the header. Raises ImageError's children only."""
        first = storage.pread(0, SECTOR)
        header = _parse_fields(first)
        _check_fields(header)
        cluster = first
        if header.cluster_size > SECTOR:
            cluster += storage.pread(SECTOR, header.cluster_size - SECTOR)
        if header.version >= 3:
            header.tail = _tail(header, cluster)
        name_length = _V2.unpack_from(cluster)[3]
        end = header.backing_offset or header.cluster_size
        header.extensions = parse_extensions(cluster, header.header_length, end)
        header.backing_name = _backing_name(header, cluster, name_length)
        _refuse_unknown(header)
        return header


def _decode(data: bytes | None) -> str | None:
    return None if data is None else data.decode("utf-8", "surrogateescape")


def _parse_fields(first: bytes) -> Header:
    if len(first) < _V2.size or first[:4] != MAGIC:
        raise NotThisFormat("Image is not in qcow2 format")
    values = _V2.unpack_from(first)
    version = values[1]
    if version not in {2, 3}:
        raise UnsupportedImage(f"Unsupported qcow2 version {version}")
    header = Header(
        version=version,
        backing_offset=values[2],
        cluster_bits=values[4],
        size=values[5],
        crypt_method=values[6],
        l1_size=values[7],
        l1_offset=values[8],
        reftable_offset=values[9],
        reftable_clusters=values[10],
        snapshot_count=values[11],
        snapshots_offset=values[12],
    )
    if version == 3:
        if len(first) < _V2.size + _V3.size:
            raise CorruptImage("the qcow2 header is truncated")
        (
            header.incompatible,
            header.compatible,
            header.autoclear,
            header.refcount_order,
            header.header_length,
        ) = _V3.unpack_from(first, _V2.size)
    return header


def _check_fields(header: Header) -> None:
    if not 9 <= header.cluster_bits <= 21:
        raise UnsupportedImage(f"Unsupported cluster size: 2^{header.cluster_bits}")
    if header.header_length > header.cluster_size:
        raise CorruptImage("qcow2 header exceeds cluster size")
    if header.version == 3 and header.header_length < 104:
        raise CorruptImage("qcow2 header too short")
    if header.header_length % 8:
        raise CorruptImage("the qcow2 header length is not a multiple of 8")
    if header.refcount_order > 6:
        raise CorruptImage("Reference count entry width too large; may not exceed 64 bits")
    if header.size >= 1 << 63:
        raise CorruptImage("Image is too big")
    if header.crypt_method > CRYPT_LUKS:
        raise UnsupportedImage(f"Unsupported encryption method {header.crypt_method}")
    if header.backing_offset >= header.cluster_size:
        raise CorruptImage("Invalid backing file offset")
    _check_tables(header)


def _check_tables(header: Header) -> None:
    _check_table("Reference count table", header, header.reftable_offset)
    if header.reftable_clusters << header.cluster_bits > MAX_REFTABLE_BYTES:
        raise CorruptImage("Reference count table too large")
    if not header.reftable_clusters:
        raise CorruptImage("Image does not contain a reference count table")
    _check_table("Active L1 table", header, header.l1_offset)
    if header.l1_size * 8 > MAX_L1_BYTES:
        raise CorruptImage("Active L1 table too large")
    _check_table("Snapshot table", header, header.snapshots_offset)
    if header.snapshot_count > MAX_SNAPSHOTS:
        raise CorruptImage("Snapshot table too large")


def _check_table(name: str, header: Header, offset: int) -> None:
    if offset % header.cluster_size or offset >= 1 << 56:
        raise CorruptImage(f"{name} offset invalid", offset=offset)


def _tail(header: Header, cluster: bytes) -> bytes:
    tail = cluster[104 : header.header_length]
    if len(tail) < header.header_length - 104:
        raise CorruptImage("the qcow2 header is truncated")
    header.compression = tail[0] if tail else ZLIB
    return tail


def _backing_name(header: Header, cluster: bytes, length: int) -> str | None:
    if not header.backing_offset:
        return None
    if length > min(MAX_NAME, header.cluster_size - header.backing_offset):
        raise CorruptImage("Backing file name too long")
    name = cluster[header.backing_offset : header.backing_offset + length]
    return name.decode("utf-8", "surrogateescape") if length else None


def _refuse_unknown(header: Header) -> None:
    unknown = header.incompatible & ~KNOWN_INCOMPATIBLE
    if unknown:
        names = ", ".join(feature_names(header.extension(FEATURE_NAMES) or b"", unknown))
        raise UnsupportedImage(f"Unsupported qcow2 feature(s): {names}")
    if header.compression not in COMPRESSION_NAMES:
        raise UnsupportedImage(f"qcow2: unknown compression type: {header.compression}")
    if bool(header.incompatible & COMPRESSION) != (header.compression != ZLIB):
        must = "" if header.compression != ZLIB else "not "
        raise CorruptImage(f"qcow2: Compression type incompatible feature bit must {must}be set")
    if header.extended_l2 and header.cluster_bits < 14:
        raise CorruptImage("extended L2 entries need clusters of 16 KiB or more")
    if header.l1_entries_for(header.size) >= 1 << 31:
        raise CorruptImage("Image is too big")
    if header.l1_size < header.l1_entries_for(header.size):
        raise CorruptImage("L1 table is too small")
