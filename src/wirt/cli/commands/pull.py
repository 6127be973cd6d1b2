"""wirt pull"""

from __future__ import annotations

import argparse
from pathlib import Path

from wirt.catalog.catalog import Catalog
from wirt.catalog.image import Firmware
from wirt.catalog.pull import pull_image
from wirt.cli.arguments import example
from wirt.cli.output import print_json, say
from wirt.cli.progress import ProgressLine
from wirt.units import format_size
from wirt.vm.context import Context


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", metavar="URL|FILE", help="a published disk image")
    parser.add_argument("--name", default="", help="name of the image (the file's)")
    parser.add_argument(
        "--checksum", default="", metavar="SUM", help="sha256 or sha512, or the address of a list"
    )
    parser.add_argument("--format", default="", help="format of the image, if it is not told")
    parser.add_argument("--firmware", choices=["bios", "uefi"], help="what starts it")
    parser.add_argument("--user", default="", help="its ordinary user, for wirt ssh")
    example(
        parser,
        "wirt pull https://example.org/debian-12.qcow2 --checksum https://example.org/SHA512SUMS",
        "wirt pull ./appliance.raw.xz --name appliance",
    )


def run(args: argparse.Namespace) -> int:
    """Take a disk image into the catalog; an interrupted download goes on where it was."""
    with ProgressLine("fetching") as progress:
        image = pull_image(
            Catalog(Path(Context().home.images)),
            args.source,
            name=args.name,
            checksum=args.checksum,
            format=args.format,
            firmware=Firmware(args.firmware) if args.firmware else None,
            user=args.user,
            progress=progress,
            step=say,
        )
    if args.json:
        print_json(image.record)
    else:
        size = format_size(image.record.virtual_size)
        kind = f"{image.record.format}, {size}, {image.record.firmware}"
        print(f"{image.record.name}: ready ({kind}); wirt run {image.record.name}")
    return 0
