"""wirt diff"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from wirt.cli.arguments import example
from wirt.cli.output import print_json, printable, say
from wirt.cli.progress import ProgressLine
from wirt.units import format_size
from wirt.vm.context import Context
from wirt.vm.diff import DiskDifference, FileSystem, diff

DIFFERENT = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    for name, text in (("first", "before"), ("second", "after")):
        parser.add_argument(
            name, metavar="VM[:SNAPSHOT]", help=f"{text}: a machine, a snapshot, or a template"
        )
    parser.add_argument(
        "--blocks", action="store_true", help="list the ranges that differ, and no files"
    )
    example(parser, "wirt diff web:before-upgrade web", "wirt diff web test --json")


def run(args: argparse.Namespace) -> int:
    """Tell what differs on the disks of two machines or snapshots; the code is 1 if any does."""
    with ProgressLine("comparing") as progress:
        found = diff(
            Context(say=say), args.first, args.second, files=not args.blocks, progress=progress
        )
    if args.json:
        print_json(found)
        return 0 if found.identical else DIFFERENT
    if found.identical:
        print(f"{args.first} and {args.second}: the disks are the same")
        return 0
    for disk in found.disks:
        for line in _lines(disk, args.first, args.second, blocks=args.blocks):
            print(printable(line))
    return DIFFERENT


def _lines(disk: DiskDifference, first: str, second: str, *, blocks: bool) -> Iterator[str]:
    if disk.only_in:
        yield f"{disk.disk}: only in {first if disk.only_in == 'first' else second}"
        return
    places = len(disk.ranges) + disk.ranges_left_out
    grown = "" if disk.sizes[0] == disk.sizes[1] else ", and its size"
    yield f"{disk.disk}: {format_size(disk.bytes)} in {places} ranges differ{grown}"
    if blocks:
        yield from (f"  {offset:#x} {length}" for offset, length in disk.ranges)
        if disk.ranges_left_out:
            yield f"  and {disk.ranges_left_out} more"
    for system in disk.file_systems:
        yield from _files(system)


def _files(system: FileSystem) -> Iterator[str]:
    where = f"partition {system.partition}" if system.partition else "whole disk"
    if system.note:
        yield f"  {where}: files are not compared: {system.note}"
        return
    if not system.files:
        yield f"  {where}: no file differs"
    for file in system.files:
        yield f"  {file.change:<10}  {file.path}"
