"""wirt img compare"""

from __future__ import annotations

import argparse

from msgspec.structs import asdict

from wirt.cli.image_access import Access, declare
from wirt.cli.output import print_json
from wirt.cli.progress import ProgressLine
from wirt.image.compare import Comparison, compare

DIFFERENT = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("first", metavar="IMAGE", help="image file")
    parser.add_argument("second", metavar="IMAGE", help="image file")
    parser.add_argument("--second-format", metavar="FORMAT", help="format of the second image")
    parser.add_argument(
        "--strict", action="store_true", help="sizes and allocated places must be the same too"
    )
    declare(parser, "wirt img compare disk.qcow2 disk.raw")


def run(args: argparse.Namespace) -> int:
    """Compare what guests see in two images; the code is 1 if they differ."""
    access = Access.of(args)
    # The second opening of one file would meet the lock of the first: both only read.
    with (
        access.open(args.first) as first,
        access.open(args.second, format=args.second_format or args.format) as second,
        ProgressLine("comparing") as progress,
    ):
        result = compare(first, second, strict=args.strict, budget=access.budget, progress=progress)
    if args.json:
        print_json(asdict(result))
    else:
        print(_words(result))
    return 0 if result.identical else DIFFERENT


def _words(result: Comparison) -> str:
    if result.identical:
        return "identical" + (" (one is longer; the rest is zeros)" if result.sizes_differ else "")
    if result.reason == "size":
        return "different: the sizes"
    return f"different: {result.reason} at {result.offset:#x}"
