"""The log: changes to metadata that were promised but are not yet in their place.

::

    entry       0 "loge"  4 CRC-32C  8 length  12 tail  16 sequence  24 descriptors
               32 log id  48 file size when flushed  56 file size needed
               64 descriptors of 32 bytes, up to the next 4 KiB and on; then data sectors
    descriptor  "desc": 4 last 4 bytes  8 first 8 bytes  16 file offset  24 sequence
                "zero": 8 length                        16 file offset  24 sequence
    data sector 0 "data"  4 sequence (high)  8 4084 bytes  4092 sequence (low)

The active sequence ends with the intact entry of the highest number whose tail, followed
entry by entry, leads to it. A reader sees the file through ``LoggedStorage`` and does not
change it; a writer has the changes written first.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from wirt.errors import CorruptImage, ImageIoError
from wirt.image.base import Budget, Storage
from wirt.image.formats.mapped import read_metadata
from wirt.image.formats.vhdx.crc import crc32c, crc_fits
from wirt.image.formats.vhdx.structures import Header

_PAGE = 4096
_ENTRY = struct.Struct("<4sIIIQII16sQQ")


class Patch(msgspec.Struct, frozen=True):
    """``data`` belongs at ``offset``; None stands for ``length`` zeros."""

    offset: int
    length: int
    data: bytes | None


class Entry(msgspec.Struct, frozen=True):
    sequence: int
    tail: int
    data: bytes
    descriptors: int
    needed_size: int
    flushed_size: int


class Replay(msgspec.Struct, frozen=True):
    patches: list[Patch] = msgspec.field(default_factory=list)
    size: int = 0


def read_log(storage: Storage, header: Header, budget: Budget) -> Replay:
    """Return what the log wants changed. Raises CorruptImage if its active part is broken."""
    if header.log_length % _PAGE or not header.log_length:
        raise CorruptImage(f"a log of {header.log_length} bytes")
    ring = read_metadata(storage, header.log_offset, header.log_length, "the log", budget)
    entries = {}
    for offset in range(0, len(ring), _PAGE):
        entry = _entry(ring, offset, header.log_id)
        if entry is not None:
            entries[offset] = entry
    sequence = _active(entries, len(ring))
    if not sequence:
        raise CorruptImage(
            "the log is not empty but holds no whole sequence of entries",
            offset=header.log_offset,
        )
    if sequence[-1].flushed_size > storage.size():
        raise CorruptImage("the file is shorter than its log says")
    patches = [patch for entry in sequence for patch in _patches(entry)]
    return Replay(patches, sequence[-1].needed_size)


def _entry(ring: bytes, offset: int, log_id: bytes) -> Entry | None:
    f = _ENTRY.unpack_from(ring, offset)
    length, tail = f[2], f[3]
    whole = 0 < length <= len(ring) and length % _PAGE == 0
    if f[0] != b"loge" or f[7] != log_id or not whole:
        return None
    if tail >= len(ring) or tail % _PAGE or not f[4] or 64 + 32 * f[5] > length:
        return None
    data = (ring[offset : offset + length] + ring[: max(0, offset + length - len(ring))])[:length]
    if not crc_fits(data, 4):
        return None
    return Entry(f[4], tail, data, f[5], f[9], f[8])


def _active(entries: dict[int, Entry], size: int) -> list[Entry]:
    for head in sorted(entries.values(), key=lambda entry: entry.sequence, reverse=True):
        sequence: list[Entry] = []
        at = head.tail
        while at in entries and len(sequence) <= len(entries):
            entry = entries[at]
            if sequence and entry.sequence != sequence[-1].sequence + 1:
                break
            sequence.append(entry)
            if entry is head:
                return sequence
            at = (at + len(entry.data)) % size
    return []


def _patches(entry: Entry) -> Iterator[Patch]:
    sector = -(-(64 + 32 * entry.descriptors) // _PAGE) * _PAGE
    for i in range(entry.descriptors):
        raw = entry.data[64 + 32 * i : 96 + 32 * i]
        offset, sequence = struct.unpack_from("<QQ", raw, 16)
        if sequence != entry.sequence or offset % _PAGE:
            raise CorruptImage("a log descriptor does not belong to its entry")
        if raw[:4] == b"zero":
            yield Patch(offset, int.from_bytes(raw[8:16], "little"), None)
            continue
        data = entry.data[sector : sector + _PAGE]
        stamp = entry.sequence.to_bytes(8, "little")
        if (
            raw[:4] != b"desc"
            or data[:4] != b"data"
            or data[4:8] + data[4092:] != stamp[4:] + stamp[:4]
        ):
            raise CorruptImage("a log entry lacks its data")
        yield Patch(offset, _PAGE, raw[8:16] + data[8:4092] + raw[4:8])
        sector += _PAGE


def pages_of(storage: Storage, changes: Iterable[tuple[int, bytes]]) -> dict[int, bytearray]:
    """Return the pages of the file, by offset, as they are after ``changes`` (offset, bytes)."""
    pages: dict[int, bytearray] = {}
    for place, data in changes:
        for at in range(place // _PAGE * _PAGE, place + len(data), _PAGE):
            if at not in pages:
                pages[at] = bytearray(storage.pread(at, _PAGE).ljust(_PAGE, b"\0"))
            low, high = max(at, place), min(at + _PAGE, place + len(data))
            pages[at][low - at : high - at] = data[low - place : high - place]
    return pages


def pack_entry(log_id: bytes, sequence: int, pages: Mapping[int, bytearray], size: int) -> bytes:
    """Return an entry that begins the ring and is the whole active sequence."""
    stamp = sequence.to_bytes(8, "little")
    head = bytearray(-(-(64 + 32 * len(pages)) // _PAGE) * _PAGE)
    for i, (offset, page) in enumerate(pages.items()):
        at = 64 + 32 * i
        struct.pack_into("<4s4s8sQQ", head, at, b"desc", page[4092:], page[:8], offset, sequence)
    data = [b"data" + stamp[4:] + page[8:4092] + stamp[:4] for page in pages.values()]
    length = len(head) + _PAGE * len(data)
    _ENTRY.pack_into(head, 0, b"loge", 0, length, 0, sequence, len(pages), 0, log_id, size, size)
    entry = bytearray(bytes(head) + b"".join(data))
    struct.pack_into("<I", entry, 4, crc32c(entry))
    return bytes(entry)


class LoggedStorage(Storage):
    """A file as it will be once its log has been replayed; the file itself stays as it is."""

    def __init__(self, storage: Storage, replay: Replay) -> None:
        self.name = storage.name
        self.read_only = True
        self._storage = storage
        self._replay = replay

    def size(self) -> int:
        return max(self._storage.size(), self._replay.size)

    def pread(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.size() - offset))
        hits = [
            p
            for p in self._replay.patches
            if p.offset < offset + length and offset < p.offset + p.length
        ]
        data = self._storage.pread(offset, length).ljust(length, b"\0")
        if not hits:
            return data
        seen = bytearray(data)
        for patch in hits:
            low, high = max(offset, patch.offset), min(offset + length, patch.offset + patch.length)
            content = patch.data
            seen[low - offset : high - offset] = (
                bytes(high - low)
                if content is None
                else content[low - patch.offset : high - patch.offset]
            )
        return bytes(seen)

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        raise ImageIoError("a file read through its log cannot be written", path=self.name)

    def truncate(self, size: int) -> None:
        raise ImageIoError("a file read through its log cannot be cut", path=self.name)

    def flush(self) -> None:
        """Nothing was written."""

    def close(self) -> None:
        self._storage.close()


def replay_into(storage: Storage, replay: Replay) -> None:
    """Write the log's changes to their places, durably."""
    limit = max(storage.size(), replay.size)
    for patch in replay.patches:
        if patch.offset + patch.length > limit:
            raise CorruptImage("the log writes beyond the end of the file", offset=patch.offset)
    if replay.size > storage.size():
        storage.truncate(replay.size)
    for patch in replay.patches:
        if patch.data is not None:
            storage.pwrite(patch.offset, patch.data)
            continue
        for at in range(0, patch.length, 1 << 20):
            storage.pwrite(patch.offset + at, bytes(min(1 << 20, patch.length - at)))
    storage.flush()
