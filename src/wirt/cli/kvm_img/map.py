"""``kvm-img map``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import msgspec
from msgspec.structs import replace

from wirt.cli.kvm_img.command import OPEN, SHARE, one_file, opening, read_words, wants_json
from wirt.cli.kvm_img.failure import Failure
from wirt.cli.kvm_img.opening import Opened, open_named
from wirt.cli.kvm_img.sizes import size_argument
from wirt.image.base import Extent, ExtentKind, Image, Storage
from wirt.image.extents import chain_extents
from wirt.image.formats.qcow2.preallocation import is_preallocated
from wirt.image.layers import layers

_SHOWING = frozenset({"qcow2", "qcow", "qed", "vmdk", "parallels"})


class Entry(msgspec.Struct, frozen=True):
    """A run of the disk as ``map`` shows it."""

    start: int
    length: int
    depth: int
    present: bool
    zero: bool
    data: bool
    offset: int | None = None
    file: str = ""

    def continues(self, last: Entry) -> bool:
        """Return whether it and ``last``, which ends where it begins, are one."""
        same = replace(self, start=0, length=0, offset=None)
        if same != replace(last, start=0, length=0, offset=None):
            return False
        if self.offset is None or last.offset is None:
            return self.offset is last.offset
        return last.offset + last.length == self.offset


def run(words: Sequence[str]) -> int:
    long = {
        "format": "f:",
        "output": "output:",
        "start-offset": "s:",
        "max-length": "l:",
        **OPEN,
        **SHARE,
    }
    parsed = read_words(words, "f:s:l:hU", long)
    start = size_argument("start offset", parsed.last("s") or "0")
    longest = parsed.last("l")
    most = None if longest is None else size_argument("max length", longest)
    name = one_file(parsed)
    as_json = wants_json(parsed)
    with open_named(name, parsed.last("f"), opening(parsed)) as opened:
        end = opened.image.virtual_size
        if most is not None:
            end = min(end, start + most)
        entries = _joined(_entries(opened, start, end))
        return _print_json(entries) if as_json else _print_text(entries)


def _entries(opened: Opened, start: int, end: int) -> Iterator[Entry]:
    if start >= end:
        return
    chain = list(layers(opened.image))
    preallocated = [is_preallocated(layer) for layer in chain]
    for extent in chain_extents(opened.image, start, end - start):
        entry = _entry(extent, chain[extent.depth])
        if entry.data and preallocated[extent.depth] and extent.storage is not None:
            yield from _with_holes(entry, extent.storage)
        else:
            yield entry


def _with_holes(entry: Entry, storage: Storage) -> Iterator[Entry]:
    """Allocated, but perhaps never written: the holes of the file below read as zeros."""
    place = entry.offset or 0
    end = place + entry.length
    for at, length, is_data in storage.extents(place, entry.length):
        start = entry.start + at - place
        yield replace(entry, start=start, length=length, offset=at, zero=not is_data)
    beyond = max(place, min(end, storage.size()))
    if beyond < end:
        start = entry.start + beyond - place
        yield replace(entry, start=start, length=end - beyond, offset=beyond, zero=True)


def _entry(extent: Extent, layer: Image) -> Entry:
    data = extent.kind is ExtentKind.DATA
    # In a raw file holes are as present as data.
    place = extent.storage_offset
    name = "" if extent.storage is None else extent.storage.name
    if place is None and extent.reserved_offset is not None:
        place, name = extent.reserved_offset, layer.storage.name
    if layer.format_name == "raw" and place is None:
        place, name = extent.offset, layer.storage.name
    return Entry(
        start=extent.offset,
        length=extent.length,
        depth=extent.depth,
        present=extent.kind is not ExtentKind.HOLE or not _shows_through(layer),
        zero=not data,
        data=data,
        offset=place,
        file="" if place is None else name,
    )


def _shows_through(layer: Image) -> bool:
    """Return whether a backing image could show through, as QEMU sees the format."""
    return layer.format_name in _SHOWING


def _joined(entries: Iterator[Entry]) -> Iterator[Entry]:
    last: Entry | None = None
    for entry in entries:
        if last is not None and entry.continues(last):
            last = replace(last, length=last.length + entry.length)
            continue
        if last is not None:
            yield last
        last = entry
    if last is not None:
        yield last


def _print_json(entries: Iterator[Entry]) -> int:
    separator = "["
    for entry in entries:
        offset = "" if entry.offset is None else f', "offset": {entry.offset}'
        sys.stdout.write(
            f'{separator}{{ "start": {entry.start}, "length": {entry.length}, "depth": '
            f'{entry.depth}, "present": {_word(entry.present)}, "zero": {_word(entry.zero)}, '
            f'"data": {_word(entry.data)}{offset}}}'
        )
        separator = ",\n"
    sys.stdout.write("]\n" if separator != "[" else "[]\n")
    return 0


def _word(value: bool) -> str:
    return "true" if value else "false"


def _print_text(entries: Iterator[Entry]) -> int:
    print(f"{'Offset':<16}{'Length':<16}{'Mapped to':<16}File")
    for entry in entries:
        if not entry.data or entry.zero:
            continue
        if entry.offset is None:
            raise Failure("File contains external, encrypted or compressed clusters.")
        print(
            f"{_hex(entry.start):<16}{_hex(entry.length):<16}{_hex(entry.offset):<16}{entry.file}"
        )
    return 0


def _hex(value: int) -> str:
    """C writes 0 without a prefix."""
    return f"{value:#x}" if value else "0"
