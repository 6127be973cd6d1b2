"""wirt img resize"""

from __future__ import annotations

import argparse

from wirt.cli.image_access import Access, declare
from wirt.cli.output import print_json
from wirt.errors import UnsupportedImage, UsageError
from wirt.image.base import Resizable
from wirt.image.formats.host_device import HostDeviceImage
from wirt.units import format_size, parse_size


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("image", metavar="IMAGE", help="image file")
    parser.add_argument(
        "size", metavar="SIZE", help="new size of the disk (30G), or how much more (+10G)"
    )
    parser.add_argument(
        "--shrink", action="store_true", help="let the disk become smaller; its end is lost"
    )
    parser.add_argument(
        "--preallocation", default="off", choices=["off", "metadata", "falloc", "full"],
        help="reserve the new space",
    )  # fmt: skip
    declare(
        parser,
        "wirt img resize disk.qcow2 +10G",
        "wirt img resize --shrink disk.qcow2 5G",
        writes=True,
    )


def run(args: argparse.Namespace) -> int:
    """Make a disk larger, or smaller with --shrink."""
    with Access.of(args).open(args.image, writable=True) as image:
        if isinstance(image, HostDeviceImage):
            raise UnsupportedImage(
                "a device has the size that it has", hint="grow the partition or volume itself"
            )
        if not isinstance(image, Resizable):
            raise UnsupportedImage(
                f"{image.format_name} images cannot be resized", hint="convert: wirt img convert"
            )
        old = image.virtual_size
        size = parse_size(args.size.removeprefix("+")) + (old if args.size[:1] == "+" else 0)
        if size < old and not args.shrink:
            raise UsageError(
                f"the disk has {format_size(old)}: everything behind {format_size(size)} is lost",
                hint="if the guest no longer uses it: --shrink",
            )
        image.resize(size, preallocation=args.preallocation)
        size = image.virtual_size
    if args.json:
        print_json({"image": args.image, "virtual_size": size, "before": old})
    else:
        print(f"{args.image}: {format_size(size)} (was {format_size(old)})")
    return 0
