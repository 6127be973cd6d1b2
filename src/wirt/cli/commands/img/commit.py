"""wirt img commit"""

from __future__ import annotations

import argparse

from wirt.cli.image_access import Access, declare
from wirt.cli.output import print_json
from wirt.cli.progress import ProgressLine
from wirt.image.commit import commit
from wirt.units import parse_size


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("image", metavar="IMAGE", help="the overlay")
    parser.add_argument(
        "-b", "--base", metavar="IMAGE", default="",
        help="commit into this image further down the chain; those between become useless",
    )  # fmt: skip
    parser.add_argument("--keep", action="store_true", help="do not empty the overlay afterwards")
    parser.add_argument("--rate-limit", metavar="SIZE", help="bytes per second at most")
    declare(parser, "wirt img commit overlay.qcow2", writes=True)


def run(args: argparse.Namespace) -> int:
    """Write what an overlay holds into its backing image, and empty the overlay."""
    access = Access.of(args)
    with ProgressLine("committing") as progress:
        base = commit(
            args.image,
            base=args.base,
            format=args.format,
            keep=args.keep,
            rate_limit=parse_size(args.rate_limit) if args.rate_limit else 0,
            gate=access.gate,
            budget=access.budget,
            secret=access.secret_of(args.image),
            progress=progress,
        )
    if args.json:
        print_json({"image": args.image, "base": base, "emptied": not (args.keep or args.base)})
    else:
        print(f"{args.image}: committed into {base}")
    return 0
