"""wirt img amend"""

from __future__ import annotations

import argparse

from wirt.cli.image_access import Access, add_options, declare, parse_options
from wirt.cli.output import print_json
from wirt.errors import UnsupportedImage, UsageError
from wirt.image.base import Amendable


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("image", metavar="IMAGE", help="image file")
    add_options(parser)
    declare(
        parser,
        "wirt img amend -o compat=0.10 disk.qcow2",
        "wirt img amend -o lazy_refcounts=on,refcount_bits=64 disk.qcow2",
        writes=True,
    )


def run(args: argparse.Namespace) -> int:
    """Change options of an image that exists."""
    options = parse_options(args.options)
    if not options:
        raise UsageError("which option?", hint="wirt img amend -o KEY=VALUE IMAGE")
    if "size" in options:
        raise UsageError("the size is no option", hint=f"wirt img resize {args.image} SIZE")
    with Access.of(args).open(args.image, writable=True, needs_secret=False) as image:
        if not isinstance(image, Amendable):
            raise UnsupportedImage(f"{image.format_name} images have no options to amend")
        image.amend(options)
    if args.json:
        print_json({"image": args.image, "options": options})
    else:
        print(f"{args.image}: amended")
    return 0
