"""wirt img dd"""

from __future__ import annotations

import argparse

from wirt.cli.image_access import Access, declare, format_for, refuse_existing
from wirt.cli.output import print_json
from wirt.cli.progress import ProgressLine
from wirt.image.dd import dd
from wirt.units import parse_size


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", metavar="SOURCE", help="image file")
    parser.add_argument("target", metavar="TARGET", help="the image to make")
    parser.add_argument("--to", metavar="FORMAT", help="format of TARGET; else by its suffix")
    parser.add_argument("--block-size", metavar="SIZE", default="512", help="bytes of a block")
    parser.add_argument("--count", metavar="N", type=int, help="blocks, counted from the start")
    parser.add_argument("--skip", metavar="N", type=int, default=0, help="blocks to leave out")
    parser.add_argument("--force", action="store_true", help="replace a file that exists")
    declare(parser, "wirt img dd --block-size 1M --count 1 disk.qcow2 first-megabyte.raw")


def run(args: argparse.Namespace) -> int:
    """Make an image of a part of a disk."""
    refuse_existing(args.target, force=args.force)
    access = Access.of(args)
    name = format_for(args.target, args.to)
    with access.open(args.source) as image, ProgressLine("copying") as progress:
        dd(
            image,
            args.target,
            name,
            block_size=parse_size(args.block_size),
            count=args.count,
            skip=args.skip,
            budget=access.budget,
            progress=progress,
        )
    if args.json:
        print_json({"target": args.target, "format": name})
    else:
        print(f"{args.target}: {name}")
    return 0
