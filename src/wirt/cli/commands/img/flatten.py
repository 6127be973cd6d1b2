"""wirt img flatten"""

from __future__ import annotations

import argparse

from wirt.cli.image_access import Access, declare
from wirt.cli.output import print_json
from wirt.cli.progress import ProgressLine
from wirt.image.rebase import flatten


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("image", metavar="IMAGE", help="the overlay")
    declare(parser, "wirt img flatten overlay.qcow2", writes=True)


def run(args: argparse.Namespace) -> int:
    """Make an overlay independent: what its chain shows is written into it."""
    access = Access.of(args)
    with ProgressLine("flattening") as progress:
        flatten(
            args.image,
            format=args.format,
            gate=access.gate,
            budget=access.budget,
            secret=access.secret_of(args.image),
            progress=progress,
        )
    if args.json:
        print_json({"image": args.image})
    else:
        print(f"{args.image}: needs no other file now")
    return 0
