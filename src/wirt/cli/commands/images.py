"""wirt images"""

from __future__ import annotations

import argparse
from pathlib import Path

from wirt.catalog.catalog import Catalog
from wirt.catalog.image import StoredImage
from wirt.cli.arguments import example
from wirt.cli.output import print_json, print_table
from wirt.errors import UsageError
from wirt.units import format_size
from wirt.vm.context import Context
from wirt.vm.listing import machines_on


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("action", nargs="?", choices=["ls", "rm"], default="ls")
    parser.add_argument("names", metavar="IMAGE", nargs="*", help="for rm: name or id")
    example(parser, "wirt images", "wirt images rm debian:12")


def run(args: argparse.Namespace) -> int:
    """List guest images, or remove some that no machine stands on."""
    context = Context()
    catalog = Catalog(Path(context.home.images))
    if args.action == "rm":
        return _remove(args, context, catalog)
    images = catalog.images()
    if args.json:
        print_json([image.record for image in images])
    elif not images:
        print("there are no images; make one: wirt build debian:12")
    else:
        print_table(
            ("NAME", "ID", "KIND", "FORMAT", "SIZE", "ON DISK", "ORIGIN"),
            [_row(image) for image in images],
        )
    return 0


def _row(image: StoredImage) -> tuple[str, ...]:
    record = image.record
    return (
        record.name,
        record.id[:12],
        record.kind,
        record.format,
        format_size(record.virtual_size),
        format_size(record.allocated_size),
        record.origin[:60],
    )


def _remove(args: argparse.Namespace, context: Context, catalog: Catalog) -> int:
    if not args.names:
        raise UsageError("which image?", hint="wirt images rm NAME")
    for name in args.names:
        image = catalog.remove(name, in_use=lambda one: machines_on(context, one.record.id))
        if not args.json:
            print(f"{image.record.name}: removed")
    if args.json:
        print_json({"removed": args.names})
    return 0
