"""wirt img snapshot"""

from __future__ import annotations

import argparse

from wirt.cli.commands.img.info import print_snapshots
from wirt.cli.image_access import Access, declare
from wirt.cli.output import print_json, printable
from wirt.errors import UnsupportedImage, UsageError
from wirt.image.base import HasSnapshots

_DONE = {"create": "made", "apply": "the disk is as it was then", "rm": "removed"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "action", choices=["ls", "create", "apply", "rm"],
        help="list snapshots; make one; make the disk what it was; remove one",
    )  # fmt: skip
    parser.add_argument("image", metavar="IMAGE", help="image file")
    parser.add_argument("name", metavar="NAME", nargs="?", help="name or id of the snapshot")
    declare(
        parser,
        "wirt img snapshot ls disk.qcow2",
        "wirt img snapshot create disk.qcow2 before-upgrade",
        "wirt img snapshot apply disk.qcow2 before-upgrade",
    )


def run(args: argparse.Namespace) -> int:
    """Work with the snapshots inside an image."""
    access = Access.of(args)
    changes = args.action != "ls"
    if changes and not args.name:
        raise UsageError("which snapshot?", hint=f"wirt img snapshot {args.action} IMAGE NAME")
    with access.open(args.image, writable=changes, with_backing=False, needs_secret=False) as image:
        if not isinstance(image, HasSnapshots):
            raise UnsupportedImage(
                f"{image.format_name} images have no snapshots",
                hint="convert it to qcow2: wirt img convert",
            )
        if changes:
            _change(image, args.action, args.name)
        else:
            _list(image, args)
    if changes and args.json:
        print_json({"image": args.image, "snapshot": args.name, "action": args.action})
    elif changes:
        print(printable(f"{args.name}: {_DONE[args.action]}"))
    return 0


def _list(image: HasSnapshots, args: argparse.Namespace) -> None:
    snapshots = list(image.snapshots())
    if args.json:
        print_json(snapshots)
    elif snapshots:
        print_snapshots(snapshots)
    else:
        print("there are no snapshots; make one: wirt img snapshot create IMAGE NAME")


def _change(image: HasSnapshots, action: str, name: str) -> None:
    act = {
        "create": image.snapshot_create,
        "apply": image.snapshot_apply,
        "rm": image.snapshot_delete,
    }
    act[action](name)
