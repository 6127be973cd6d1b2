"""wirt rm"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import add_machine, each, example
from wirt.cli.output import print_json, say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_machine(parser, many=True)
    parser.add_argument("-f", "--force", action="store_true", help="also one that is running")
    example(parser, "wirt rm web", "wirt rm --force web db")


def run(args: argparse.Namespace) -> int:
    """Remove machines with the disks that are theirs alone."""
    from wirt.vm.context import Context
    from wirt.vm.remove import remove

    context = Context(say=say)

    def act(name: str) -> None:
        remove(context, name, force=args.force)
        if args.json:
            print_json({"name": name, "removed": True})
        else:
            print(f"{name}: removed")

    return each(args.names, act, args)
