"""wirt pool"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import Parser, add_settings, example
from wirt.cli.commands.create import add_disk_options, wish_of
from wirt.cli.output import print_json, print_table, say
from wirt.errors import UsageError
from wirt.units import format_size, parse_duration
from wirt.vm.context import Context
from wirt.vm.pool import Row, list_pools, refill, set_pool


def configure(parser: Parser) -> None:
    """Declare the arguments."""
    parser.add_argument("image", metavar="IMAGE", nargs="?", default="", help="debian:12 …")
    parser.add_argument("--size", type=int, metavar="N", help="how many; 0 removes the pool")
    parser.add_argument("--timeout", default="10m", metavar="TIME", help="for a guest to boot")
    parser.add_argument("--refill", metavar="POOL", help=argparse.SUPPRESS)
    add_disk_options(parser)
    add_settings(parser)
    example(parser, "wirt pool debian:12 --size 4", "wirt pool", "wirt pool debian:12 --size 0")


def run(args: argparse.Namespace) -> int:
    """Set the size of a pool, or list pools."""
    context = Context(say=say)
    if args.refill:
        refill(context, args.refill)
    elif args.image:
        _set(context, args)
    elif args.size is not None:
        raise UsageError("a pool of which image?", hint="wirt pool debian:12 --size 4")
    else:
        _list(list_pools(context), as_json=args.json)
    return 0


def _set(context: Context, args: argparse.Namespace) -> None:
    from wirt.vm.oneshot import ensure_warm, for_command
    from wirt.vm.source import resolve_or_build
    from wirt.vm.template import seek

    if args.size is None:
        raise UsageError("how many shall be ready?", hint=f"wirt pool {args.image} --size 4")
    source = resolve_or_build(context, args.image, image_format=args.format)
    wish = for_command(source, wish_of(args))
    if args.size:
        sought = ensure_warm(context, source, wish, timeout=parse_duration(args.timeout))
    else:
        found = seek(context, source, wish)
        if found is None:
            raise UsageError("there can be no pool of these machines", hint="wirt pool")
        sought = found
    row = set_pool(context, sought, args.size)
    if args.json:
        print_json(row)
    else:
        print(f"{row.image}: {row.ready} of {row.size} ready, {format_size(row.ram)}")


def _list(rows: list[Row], *, as_json: bool) -> None:
    if as_json:
        print_json(rows)
    elif not rows:
        print("there are no pools; make one: wirt pool debian:12 --size 4")
    else:
        print_table(
            ("POOL", "IMAGE", "READY", "OWN RAM"),
            [
                (row.fingerprint, row.image, f"{row.ready}/{row.size}", format_size(row.ram))
                for row in rows
            ],
        )
