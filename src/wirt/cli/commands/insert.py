"""wirt insert"""

from __future__ import annotations

import argparse

from msgspec.structs import asdict

from wirt.cli.arguments import add_machine, example
from wirt.cli.output import print_json, say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_machine(parser)
    parser.add_argument("image", metavar="IMAGE", help="image file, or a drive of this host")
    add_drive(parser)
    parser.add_argument("--format", default="", help="of the image (raw)")
    example(
        parser,
        "wirt insert web tools.iso",
        "wirt insert old --drive fd disk2.img",
        "wirt insert web tools.qcow2 --format qcow2",
    )


def add_drive(parser: argparse.ArgumentParser) -> None:
    """Add which drive, and how."""
    parser.add_argument("--drive", default="", metavar="ID", help="which one, if it has several")
    parser.add_argument(
        "--force", action="store_true", help="although the guest has mounted what is in it"
    )


def run(args: argparse.Namespace) -> int:
    """Put an image into a CD or floppy drive, in place of what is in it; also while it runs."""
    from wirt.vm.context import Context
    from wirt.vm.medium import insert

    done = insert(
        Context(say=say), args.name, args.image,
        drive=args.drive, image_format=args.format, force=args.force,
    )  # fmt: skip
    if args.json:
        print_json({"name": args.name, **asdict(done)})
    else:
        print(f"{args.name}: {done.drive} holds {done.image} ({done.format})")
    return 0
