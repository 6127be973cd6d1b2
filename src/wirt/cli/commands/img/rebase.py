"""wirt img rebase"""

from __future__ import annotations

import argparse

from wirt.cli.image_access import Access, declare
from wirt.cli.output import print_json
from wirt.cli.progress import ProgressLine
from wirt.image.rebase import rebase


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("image", metavar="IMAGE", help="the overlay")
    parser.add_argument(
        "backing", metavar="BACKING",
        help="its new backing image; a relative name means beside IMAGE; '' for none",
    )  # fmt: skip
    parser.add_argument("-F", "--backing-format", metavar="FORMAT", help="format of BACKING")
    parser.add_argument(
        "--unsafe", action="store_true",
        help="only change the name, because the old backing image was moved or renamed",
    )  # fmt: skip
    declare(
        parser,
        "wirt img rebase overlay.qcow2 newer-base.qcow2",
        "wirt img rebase --unsafe -F qcow2 overlay.qcow2 moved/base.qcow2",
        writes=True,
    )


def run(args: argparse.Namespace) -> int:
    """Give an overlay another backing image; the guest sees the same as before."""
    access = Access.of(args)
    with ProgressLine("rebasing") as progress:
        rebase(
            args.image,
            args.backing,
            backing_format=args.backing_format or "",
            format=args.format,
            unsafe=args.unsafe,
            gate=access.gate,
            budget=access.budget,
            secret=access.secret_of(args.image),
            progress=progress,
        )
    if args.json:
        print_json({"image": args.image, "backing": args.backing})
    else:
        print(f"{args.image}: an overlay of {args.backing}" if args.backing else
              f"{args.image}: without a backing image")  # fmt: skip
    return 0
