"""wirt img map"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from wirt.cli.image_access import Access, declare
from wirt.cli.output import printable
from wirt.image.base import Image
from wirt.image.extents import chain_extents
from wirt.units import parse_size

_ROW = "{:>16} {:>16}  {:<12} {:>5}  {}"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("image", metavar="IMAGE", help="image file")
    parser.add_argument("--start", metavar="SIZE", default="0", help="first byte to tell of")
    parser.add_argument("--length", metavar="SIZE", help="bytes to tell of")
    declare(parser, "wirt img map disk.qcow2", "wirt img map --json overlay.qcow2")


def run(args: argparse.Namespace) -> int:
    """Tell where each run of a disk lies, through the chain, line by line."""
    with Access.of(args).open(args.image, needs_secret=False) as image:
        start = min(parse_size(args.start), image.virtual_size)
        length = image.virtual_size - start
        if args.length:
            length = min(length, parse_size(args.length))
        rows = _rows(image, start, length)
        _print_json(rows) if args.json else _print(rows)
    return 0


def _rows(image: Image, start: int, length: int) -> Iterator[dict[str, Any]]:
    for extent in chain_extents(image, start, length):
        stored = extent.storage is not None and extent.storage_offset is not None
        yield {
            "start": extent.offset,
            "length": extent.length,
            "kind": extent.kind.value,
            "depth": extent.depth,
            "compressed": extent.compressed,
            "file": extent.storage.name if stored and extent.storage else None,
            "offset": extent.storage_offset if stored else None,
        }


def _print(rows: Iterator[dict[str, Any]]) -> None:
    print(_ROW.format("START", "LENGTH", "KIND", "DEPTH", "WHERE"))
    for row in rows:
        kind = "compressed" if row["compressed"] else row["kind"]
        place = printable(f"{row['file']} at {row['offset']:#x}") if row["file"] else ""
        print(
            _ROW.format(
                f"{row['start']:#x}", f"{row['length']:#x}", kind, row["depth"], place
            ).rstrip()
        )


def _print_json(rows: Iterator[dict[str, Any]]) -> None:
    """Print a list of which not all rows are in memory at once."""
    separator = "["
    for row in rows:
        print(separator + json.dumps(row))
        separator = ","
    print("]" if separator == "," else "[]")
