"""wirt img key"""

from __future__ import annotations

import argparse

from wirt.cli.image_access import Access, declare, new_secret
from wirt.cli.output import print_json
from wirt.errors import UnsupportedImage
from wirt.image.base import HasKeys


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "action", choices=["add", "rm"], help="let another passphrase open it; or one no more"
    )
    parser.add_argument("image", metavar="IMAGE", help="encrypted image file")
    parser.add_argument(
        "--new-secret-file", metavar="FILE", help="for add: the new one; else it is asked for"
    )
    declare(
        parser,
        "wirt img key add --secret-file old --new-secret-file new disk.qcow2",
        "wirt img key rm --secret-file old disk.qcow2",
        writes=True,
    )


def run(args: argparse.Namespace) -> int:
    """Change the passphrases of an encrypted image; its data stay as they are."""
    access = Access.of(args)
    with access.open(args.image, writable=True, with_backing=False, needs_secret=False) as image:
        if not isinstance(image, HasKeys) or not image.info().encrypted:
            raise UnsupportedImage(f"{args.image} has no passphrases that can be changed")
        secret = access.secret(args.image)
        if args.action == "add":
            slot = image.add_key(secret, new_secret(args.new_secret_file, args.image))
        else:
            slot = image.remove_key(secret)
    if args.json:
        print_json({"image": args.image, "action": args.action, "slot": slot})
    else:
        print(f"{args.image}: key slot {slot} {'set' if args.action == 'add' else 'cleared'}")
    return 0
