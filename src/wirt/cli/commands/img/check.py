"""wirt img check"""

from __future__ import annotations

import argparse

from msgspec.structs import asdict

from wirt.cli.image_access import Access, declare
from wirt.cli.output import print_json, printable
from wirt.errors import CorruptImage, ImageLeaks, UnsupportedImage
from wirt.image.base import Checkable, CheckResult

_SHOWN = 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("image", metavar="IMAGE", help="image file")
    parser.add_argument(
        "--repair", choices=["leaks", "all"],
        help="give lost space back (leaks), or repair whatever can be (all)",
    )  # fmt: skip
    declare(parser, "wirt img check disk.qcow2", "wirt img check --repair all disk.qcow2")


def run(args: argparse.Namespace) -> int:
    """Check the metadata of an image; codes 23 for corruption and 28 for leaks remain."""
    access = Access.of(args)
    repair = args.repair or ""
    image = access.open(
        args.image,
        writable=bool(repair),
        allow_dirty=True,
        with_backing=False,
        needs_secret=False,
    )
    with image:
        if not isinstance(image, Checkable):
            raise UnsupportedImage(f"{image.format_name} images have nothing to check")
        result = image.check(repair=repair)
    if args.json:
        print_json(asdict(result))
    else:
        _print(args.image, result)
    if result.corruptions:
        return CorruptImage.exit_code
    return ImageLeaks.exit_code if result.leaks else 0


def _print(path: str, result: CheckResult) -> None:
    for message in result.messages[:_SHOWN]:
        print(printable(message))
    if len(result.messages) > _SHOWN:
        print(f"… and {len(result.messages) - _SHOWN} more (--json tells all)")
    if result.corruptions_fixed or result.leaks_fixed:
        print(f"repaired: {result.corruptions_fixed} errors, {result.leaks_fixed} leaked clusters")
    if result.corruptions:
        print(
            f"{path}: {result.corruptions} errors; repair them: wirt img check --repair all {path}"
        )
    if result.leaks:
        print(f"{path}: {result.leaks} leaked clusters; wirt img check --repair leaks {path}")
    if not result.corruptions and not result.leaks:
        share = f"{result.allocated_clusters} of {result.total_clusters} clusters in use"
        print(f"{path}: no errors, {share}" if result.total_clusters else f"{path}: no errors")
