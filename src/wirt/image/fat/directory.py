r"""The entries of a FAT directory: short names, long names, times.

Specification: Microsoft "FAT: General Overview of On-Disk Format" 1.03. An entry has 32
bytes. A name outside the old 8.3 form is stored as a chain of entries of 13 UTF-16
characters before the short one, last part first, tied to it by a checksum of the short name.
"""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Iterator

import msgspec

from wirt.errors import CorruptImage, UsageError
from wirt.image.fat.volume import ENTRY

READ_ONLY, VOLUME, DIRECTORY, ARCHIVE, LONG_NAME = 0x01, 0x08, 0x10, 0x20, 0x0F
LONGEST_NAME = 255
LARGEST_FILE = (1 << 32) - 1
_ENTRY = struct.Struct("<11sBBBHHHHHHHI")
_FORBIDDEN = set('"*/:<>?\\|\0')
_SHORT = re.compile(r"[A-Z0-9!#$%&'()@^_`{}~-]{1,8}(\.[A-Z0-9!#$%&'()@^_`{}~-]{1,3})?")
_ODD = re.compile(r"[^A-Z0-9!#$%&'()@^_`{}~-]")
_LAST_LONG, _DELETED = 0x40, 0xE5
_LOWER_BASE, _LOWER_EXTENSION = 0x08, 0x10
_EPOCH = 1 << 5 | 1  # 1980-01-01, the first day that FAT knows


def volume_label(label: str) -> bytes:
    """Return ``label`` as an entry stores it. Raises UsageError."""
    if len(label) > 11 or not label.isascii() or not label.isprintable():
        raise UsageError(f"{label[:40]!r} cannot be a FAT label")
    return label.upper().encode("ascii").ljust(11)


def pack_entry(
    short: bytes, attributes: int, first: int, size: int, moment: tuple[int, int] = (_EPOCH, 0)
) -> bytes:
    """Return a short entry; ``moment`` is (date, time) as ``fat_moment`` makes it."""
    date, clock = moment
    return _ENTRY.pack(
        short, attributes, 0, 0, clock, date, date, first >> 16, clock, date, first & 0xFFFF, size
    )


def pack_long_name(name: str, short: bytes) -> bytes:
    """Return the entries that go in front of the short one. Raises UsageError."""
    check_name(name)
    checksum = _checksum(short)
    units = name.encode("utf-16-le")
    pieces = [units[start : start + 26] for start in range(0, len(units), 26)]
    entries = [_long_entry(piece, place, checksum) for place, piece in enumerate(pieces, 1)]
    entries[-1] = bytes([entries[-1][0] | _LAST_LONG]) + entries[-1][1:]
    return b"".join(reversed(entries))


def check_name(name: str) -> None:
    """Raise UsageError for what cannot be a name on FAT."""
    if (
        not name
        or len(name.encode("utf-16-le", "surrogatepass")) > 2 * LONGEST_NAME
        or set(name) & _FORBIDDEN
        or not name.isprintable()
        or name[-1] in ". "
    ):
        raise UsageError(f"{name[:40]!r} cannot be a name on a FAT file system")


def _long_entry(piece: bytes, place: int, checksum: int) -> bytes:
    if len(piece) < 26:
        piece = (piece + b"\0\0").ljust(26, b"\xff")
    head = struct.pack("<B10sBBB", place, piece[:10], LONG_NAME, 0, checksum)
    return head + piece[10:22] + b"\0\0" + piece[22:]


def _checksum(short: bytes) -> int:
    value = 0
    for byte in short:
        value = ((value >> 1 | value << 7) + byte) & 0xFF
    return value


class ShortNames:
    """Gives each name of one directory a short one that no other has."""

    def __init__(self) -> None:
        self._taken: set[bytes] = set()
        self._next: dict[tuple[str, str], int] = {}

    def add(self, name: str) -> tuple[bytes, bool]:
        """Return the 11 bytes, and whether they say less than ``name``."""
        if _SHORT.fullmatch(name):
            base, _, extension = name.partition(".")
            short = _padded(base, extension)
            if short not in self._taken:
                self._taken.add(short)
                return short, False
        return self._numbered(name), True

    def _numbered(self, name: str) -> bytes:
        base, dot, extension = name.lstrip(".").upper().rpartition(".")
        if not dot:
            base, extension = extension, ""
        base = _ODD.sub("_", base.replace(" ", "").replace(".", "")) or "_"
        extension = _ODD.sub("_", extension.replace(" ", ""))[:3]
        number = self._next.get((base[:6], extension), 0)
        while True:
            number += 1
            tail = f"~{number}"
            short = _padded(base[: 8 - len(tail)] + tail, extension)
            if short not in self._taken:
                self._next[base[:6], extension] = number
                self._taken.add(short)
                return short


def _padded(base: str, extension: str) -> bytes:
    return base.encode("ascii").ljust(8) + extension.encode("ascii").ljust(3)


class Entry(msgspec.Struct, frozen=True):
    """A file or directory as its directory describes it; ``modified`` in seconds."""

    name: str
    attributes: int
    first: int
    size: int
    modified: float

    @property
    def is_directory(self) -> bool:
        return bool(self.attributes & DIRECTORY)


def parse_directory(data: bytes) -> Iterator[Entry]:
    """Yield the entries but the volume's label, ``.`` and ``..``. Raises CorruptImage."""
    parts: dict[int, bytes] = {}
    checksum = -1
    for start in range(0, len(data) - ENTRY + 1, ENTRY):
        raw = data[start : start + ENTRY]
        if raw[0] == 0:
            return
        if raw[0] == _DELETED:
            parts = {}
        elif raw[11] & 0x3F == LONG_NAME:
            if raw[0] & _LAST_LONG:
                parts = {}
                checksum = raw[13]
            parts[raw[0] & 0x3F] = raw[1:11] + raw[14:26] + raw[28:32]
        else:
            long = _joined(parts) if checksum == _checksum(raw[:11]) else ""
            parts = {}
            if not raw[11] & VOLUME and raw[:2] not in {b". ", b".."}:
                yield _parse_entry(raw, long)


def _joined(parts: dict[int, bytes]) -> str:
    if sorted(parts) != list(range(1, len(parts) + 1)):
        return ""
    units = b"".join(parts[place] for place in sorted(parts))
    end = next((i for i in range(0, len(units), 2) if units[i : i + 2] == b"\0\0"), len(units))
    return units[:end].decode("utf-16-le", "replace")


def _parse_entry(raw: bytes, long: str) -> Entry:
    short, attributes, case, _, _, _, _, high, clock, date, low, size = _ENTRY.unpack(raw)
    name = long or _short_text(short, case)
    try:
        check_name(name)
    except UsageError as error:
        raise CorruptImage(f"the file system has the name {name[:40]!r}") from error
    return Entry(name, attributes, high << 16 | low, size, _seconds(date, clock))


def _short_text(short: bytes, case: int) -> str:
    if short[0] == 0x05:  # stands for 0xE5, which would mean "deleted"
        short = b"\xe5" + short[1:]
    base = short[:8].decode("cp437").rstrip()
    extension = short[8:].decode("cp437").rstrip()
    base = base.lower() if case & _LOWER_BASE else base
    extension = extension.lower() if case & _LOWER_EXTENSION else extension
    return f"{base}.{extension}" if extension else base


def fat_moment(seconds: float) -> tuple[int, int]:
    """Return (date, time) in local time, as FAT has it: from 1980 to 2107, even seconds."""
    moment = time.localtime(seconds)
    if moment.tm_year < 1980:
        return _EPOCH, 0
    if moment.tm_year > 2107:
        return 127 << 9 | 12 << 5 | 31, 0
    date = (moment.tm_year - 1980) << 9 | moment.tm_mon << 5 | moment.tm_mday
    return date, moment.tm_hour << 11 | moment.tm_min << 5 | min(moment.tm_sec, 59) // 2


def _seconds(date: int, clock: int) -> float:
    fields = (
        (date >> 9) + 1980, max(1, date >> 5 & 15), max(1, date & 31),
        clock >> 11, clock >> 5 & 63, (clock & 31) * 2, 0, 0, -1,
    )  # fmt: skip
    try:
        return time.mktime(fields)
    except (OverflowError, ValueError):
        return 0.0
