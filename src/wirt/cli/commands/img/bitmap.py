"""wirt img bitmap"""

from __future__ import annotations

import argparse
from contextlib import nullcontext

from wirt.cli.commands.img.info import print_bitmaps
from wirt.cli.image_access import Access, declare
from wirt.cli.output import print_json, printable
from wirt.errors import UnsupportedImage, UsageError
from wirt.image.base import HasBitmaps, Image
from wirt.units import parse_size

_DONE = {
    "add": "added",
    "rm": "removed",
    "clear": "marks nothing now",
    "enable": "records what is written",
    "disable": "records nothing more",
    "merge": "merged",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("action", choices=["ls", *_DONE], help="what to do")
    parser.add_argument("image", metavar="IMAGE", help="image file")
    parser.add_argument("name", metavar="NAME", nargs="?", help="the bitmap")
    parser.add_argument("source", metavar="SOURCE", nargs="?", help="for merge: what to add to it")
    parser.add_argument(
        "--granularity", metavar="SIZE", help="for add: bytes that one bit stands for"
    )
    parser.add_argument("--disabled", action="store_true", help="for add: do not record yet")
    parser.add_argument(
        "--from", dest="other", metavar="IMAGE", help="for merge: the image that has SOURCE"
    )
    declare(
        parser,
        "wirt img bitmap ls disk.qcow2",
        "wirt img bitmap add disk.qcow2 since-monday --granularity 64K",
        "wirt img bitmap merge --from overlay.qcow2 disk.qcow2 since-monday since-noon",
    )


def run(args: argparse.Namespace) -> int:
    """Work with the persistent dirty bitmaps of an image."""
    access = Access.of(args)
    changes = args.action != "ls"
    _refuse_incomplete(args)
    image = access.open(args.image, writable=changes, with_backing=False, needs_secret=False)
    other = (
        access.open(args.other, with_backing=False, needs_secret=False)
        if args.other
        else nullcontext(image)
    )
    with image, other as source:
        if not isinstance(image, HasBitmaps):
            raise _none(image)
        if changes:
            _change(image, source, args)
        else:
            _list(image, args)
    if changes and args.json:
        print_json({"image": args.image, "bitmap": args.name, "action": args.action})
    elif changes:
        print(printable(f"{args.name}: {_DONE[args.action]}"))
    return 0


def _refuse_incomplete(args: argparse.Namespace) -> None:
    if args.action != "ls" and not args.name:
        raise UsageError("which bitmap?", hint=f"wirt img bitmap {args.action} IMAGE NAME")
    if (args.action == "merge") != bool(args.source):
        raise UsageError("a merge has a source", hint="wirt img bitmap merge IMAGE NAME SOURCE")


def _none(image: Image) -> UnsupportedImage:
    return UnsupportedImage(
        f"{image.format_name} images have no bitmaps", hint="convert it to qcow2: wirt img convert"
    )


def _list(image: HasBitmaps, args: argparse.Namespace) -> None:
    bitmaps = list(image.bitmaps())
    if args.json:
        print_json(bitmaps)
    elif bitmaps:
        print_bitmaps(bitmaps)
    else:
        print("there are no bitmaps; add one: wirt img bitmap add IMAGE NAME")


def _change(image: HasBitmaps, source: Image, args: argparse.Namespace) -> None:
    if args.action == "add":
        size = parse_size(args.granularity) if args.granularity else 0
        image.bitmap_add(args.name, granularity=size, enabled=not args.disabled)
    elif args.action == "rm":
        image.bitmap_remove(args.name)
    elif args.action == "clear":
        image.bitmap_clear(args.name)
    elif args.action == "merge":
        if not isinstance(source, HasBitmaps):
            raise _none(source)
        image.bitmap_merge(args.name, source, args.source)
    else:
        image.bitmap_enable(args.name, enabled=args.action == "enable")
