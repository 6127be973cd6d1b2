"""wirt rename"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import example
from wirt.cli.output import print_json, say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("old", metavar="VM", help="name of a machine that is down")
    parser.add_argument("new", metavar="NAME", help="its new name")
    example(parser, "wirt rename web web-old")


def run(args: argparse.Namespace) -> int:
    """Give a machine another name."""
    from wirt.vm.context import Context
    from wirt.vm.remove import rename

    rename(Context(say=say), args.old, args.new)
    if args.json:
        print_json({"name": args.new, "was": args.old})
    else:
        print(f"{args.old} is {args.new} now")
    return 0
