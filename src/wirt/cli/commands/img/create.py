"""wirt img create"""

from __future__ import annotations

import argparse
import os

from wirt.cli.image_access import (
    Access,
    add_options,
    declare,
    format_for,
    new_secret,
    parse_options,
    refuse_existing,
    with_secret,
)
from wirt.cli.output import print_json
from wirt.errors import NotFound, UsageError
from wirt.image.create import create_image
from wirt.units import format_size, parse_size


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("path", metavar="FILE", help="the image to make")
    parser.add_argument("size", metavar="SIZE", nargs="?", help="size of the disk: 20G")
    parser.add_argument(
        "-b", "--backing", metavar="IMAGE",
        help="make an overlay of this image; a relative name means beside FILE",
    )  # fmt: skip
    parser.add_argument("-F", "--backing-format", metavar="FORMAT", help="format of that image")
    add_options(parser)
    parser.add_argument("--encrypt", action="store_true", help="encrypt it (LUKS)")
    parser.add_argument("--force", action="store_true", help="replace a file that exists")
    declare(
        parser,
        "wirt img create disk.qcow2 20G",
        "wirt img create -b base.qcow2 overlay.qcow2",
        "wirt img create --encrypt -o cluster_size=2M secret.qcow2 20G",
        writes=True,
    )


def run(args: argparse.Namespace) -> int:
    """Make an empty image; the format is --format, or by the name's suffix, else qcow2."""
    refuse_existing(args.path, force=args.force)
    name = format_for(args.path, args.format)
    options = parse_options(args.options)
    backing_format, size = _behind(args)
    if args.encrypt:
        options |= {"encrypt.format": "luks"} if name == "qcow2" else {}
        options = with_secret(options, new_secret(args.secret_file, args.path))
    create_image(
        args.path,
        name,
        size,
        backing=args.backing or "",
        backing_format=backing_format,
        options=options,
    )
    if args.json:
        print_json({"file": args.path, "format": name, "virtual_size": size})
    else:
        behind = f", an overlay of {args.backing} ({backing_format})" if args.backing else ""
        print(f"{args.path}: {name}, {format_size(size)}{behind}")
    return 0


def _behind(args: argparse.Namespace) -> tuple[str, int]:
    """Return the format of the backing image, and the size of the disk: its own by default."""
    if not args.backing:
        if args.size is None:
            raise UsageError("which size?", hint=f"wirt img create {args.path} 20G")
        return "", parse_size(args.size)
    access = Access.of(args)
    access.format = args.backing_format
    path = os.path.join(os.path.dirname(args.path), args.backing)
    if not os.path.exists(path) and os.path.exists(args.backing):
        beside = os.path.relpath(args.backing, os.path.dirname(args.path) or ".")
        raise NotFound(f"{path} does not exist", hint=f"it is beside {args.path}: -b {beside}")
    with access.look_at(path, with_backing=False) as image:
        size = image.virtual_size if args.size is None else parse_size(args.size)
        return image.format_name, size
