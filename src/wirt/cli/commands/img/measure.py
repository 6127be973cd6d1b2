"""wirt img measure"""

from __future__ import annotations

import argparse
from contextlib import nullcontext

from msgspec.structs import asdict

from wirt.cli.image_access import Access, add_options, declare, parse_options
from wirt.cli.output import print_json
from wirt.errors import UsageError
from wirt.image.measure import measure
from wirt.units import format_size, parse_size


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("image", metavar="IMAGE", nargs="?", help="an image to be converted")
    parser.add_argument("--size", metavar="SIZE", help="or the size of an empty disk")
    parser.add_argument("--to", metavar="FORMAT", default="qcow2", help="format (raw, qcow2)")
    add_options(parser)
    declare(parser, "wirt img measure disk.vmdk", "wirt img measure --size 20G --to qcow2")


def run(args: argparse.Namespace) -> int:
    """Tell how large a file an image would need, before it is made."""
    if (args.image is None) == (args.size is None):
        raise UsageError("measure an image, or a size", hint="wirt img measure --size 20G")
    source = Access.of(args).open(args.image) if args.image else nullcontext()
    with source as image:
        size = parse_size(args.size) if args.size else 0
        result = measure(args.to, size=size, source=image, options=parse_options(args.options))
    if args.json:
        print_json(asdict(result))
        return 0
    print(f"required: {format_size(result.required)} ({result.required} bytes)")
    whole = result.fully_allocated
    print(f"fully allocated: {format_size(whole)} ({whole} bytes)")
    if result.bitmaps:
        print(f"bitmaps: {format_size(result.bitmaps)} ({result.bitmaps} bytes)")
    return 0
