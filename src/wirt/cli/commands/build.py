"""wirt build"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from wirt.catalog.build import build_image
from wirt.catalog.catalog import Catalog
from wirt.catalog.recipe import DEFAULT_SIZE, FileCopy, Recipe
from wirt.cli.arguments import example
from wirt.cli.output import print_json, say
from wirt.errors import NotFound, UsageError
from wirt.units import format_size, parse_size
from wirt.vm.context import Context


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("distribution", metavar="DISTRIBUTION", help="debian:12, debian:13 …")
    parser.add_argument("--name", default="", help="name of the image (the distribution's)")
    parser.add_argument(
        "--package", action="append", default=[], metavar="NAME", help="install this as well"
    )
    parser.add_argument("--size", default="", help="size of the disk")
    parser.add_argument("--user", default="user", help="name of the ordinary user")
    parser.add_argument(
        "--ssh-key", action="append", default=[], metavar="FILE", help="public key that may log in"
    )
    parser.add_argument(
        "--copy", action="append", default=[], metavar="FILE:TARGET", help="put a file into it"
    )
    parser.add_argument("--hostname", default="guest", help="host name of the guest")
    parser.add_argument("--mirror", default="", help="where packages come from")
    parser.add_argument("--no-autologin", action="store_true", help="the console asks who you are")
    parser.add_argument("--rebuild", action="store_true", help="make it anew if it exists")
    example(
        parser,
        "wirt build debian:12",
        "wirt build debian:13 --name web13 --package nginx --copy site.conf:/etc/nginx/site.conf",
    )


def run(args: argparse.Namespace) -> int:
    """Build a guest image; a second time the same image is there at once."""
    recipe = Recipe(
        distribution=args.distribution,
        packages=tuple(args.package),
        user=args.user,
        ssh_keys=tuple(_public_key(path) for path in args.ssh_key),
        files=tuple(_copy(text) for text in args.copy),
        hostname=args.hostname,
        autologin=not args.no_autologin,
        mirror=args.mirror,
        size=parse_size(args.size) if args.size else DEFAULT_SIZE,
    )
    catalog = Catalog(Path(Context().home.images))
    image = build_image(catalog, recipe, name=args.name, rebuild=args.rebuild, step=say)
    if args.json:
        print_json(image.record)
    else:
        size = format_size(image.record.allocated_size)
        print(f"{image.record.name}: ready, {size} on disk; wirt run {image.record.name}")
    return 0


def _public_key(path: str) -> str:
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as file:
            text = file.read(1 << 16).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(f"{path} cannot be read: {error}") from error
    if "PRIVATE KEY" in text:
        raise UsageError(f"{path} is a private key", hint=f"give {path}.pub")
    return text


def _copy(text: str) -> FileCopy:
    source, colon, target = text.rpartition(":")
    if not colon or not target.startswith("/"):
        raise UsageError(f"--copy {text!r}: FILE:/TARGET is expected")
    mode = 0o755 if os.access(source, os.X_OK) else 0o644
    return FileCopy(source=Path(source), target=target, mode=mode)
