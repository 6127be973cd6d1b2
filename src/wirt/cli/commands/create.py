"""wirt create"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import Parser, add_settings, example, settings_tree
from wirt.cli.output import print_json, say
from wirt.errors import NotFound
from wirt.units import parse_size
from wirt.vm.context import Context
from wirt.vm.create import Wish, create, merge
from wirt.vm.source import resolve_or_build


def configure(parser: Parser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="NAME", help="name of the new machine")
    add_source(parser)
    add_settings(parser)
    example(
        parser,
        "wirt create web --image debian:12 -m 2G --cpus 2",
        "wirt create old --image disk.vmdk --format vmdk",
        "wirt create new --cdrom installer.iso --disk-size 40G",
        "wirt create copy --from machine.toml",
    )


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add what the machine is made of."""
    parser.add_argument("--image", default="", help="guest image, disk image file or .iso")
    parser.add_argument("--from", dest="spec", metavar="FILE", help="a machine description (TOML)")
    add_disk_options(parser)


def add_disk_options(parser: argparse.ArgumentParser) -> None:
    """Add what is made of the image."""
    parser.add_argument("--format", default="", help="format of the disk image file")
    parser.add_argument("--cdrom", default="", metavar="FILE", help="put this CD into a drive")
    parser.add_argument("--disk-size", metavar="SIZE", help="size of the machine's disk")
    parser.add_argument(
        "--no-seed", action="store_true", help="no cloud-init seed for a pulled image"
    )
    parser.add_argument(
        "--own-disk", action="store_true", help="write to the image file itself, not to an overlay"
    )


def run(args: argparse.Namespace) -> int:
    """Make a machine."""
    context = Context(say=say)
    source = resolve_or_build(context, args.image, image_format=args.format) if args.image else None
    paths = create(context, args.name, source, wish_of(args))
    if args.json:
        print_json({"name": args.name, "directory": paths.root})
    else:
        print(f"{args.name}: created; wirt start {args.name}")
    return 0


def wish_of(args: argparse.Namespace) -> Wish:
    """Return what the options ask for."""
    tree = settings_tree(args)
    if getattr(args, "spec", None):
        tree = merge(_described(args.spec), tree)
    return Wish(
        settings=tree,
        own_disk=args.own_disk,
        disk_size=parse_size(args.disk_size) if args.disk_size else 0,
        cdrom=args.cdrom,
        seed=not args.no_seed,
    )


def _described(path: str) -> dict[str, object]:
    """Return a machine description as a tree, without the identity of the machine it was."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(1 << 20)
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(f"{path} cannot be read: {error}") from error
    import msgspec

    from wirt.spec import toml

    tree: dict[str, object] = msgspec.to_builtins(toml.load(text, file=path))
    for key in ("name", "uuid"):
        tree.pop(key, None)
    return tree
