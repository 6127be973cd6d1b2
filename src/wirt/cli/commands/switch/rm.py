"""wirt switch rm"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import each, example
from wirt.cli.output import print_json, say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("names", metavar="SWITCH", nargs="+", help="name of a switch")
    parser.add_argument("-f", "--force", action="store_true", help="also one that is used")
    example(parser, "wirt switch rm dmz")


def run(args: argparse.Namespace) -> int:
    """Remove switches."""
    from wirt.vm.context import Context
    from wirt.vm.network.switches import remove_switch

    context = Context(say=say)
    removed: list[str] = []

    def act(name: str) -> None:
        remove_switch(context, name, force=args.force)
        removed.append(name)
        if not args.json:
            print(f"{name}: removed")

    code = each(args.names, act, debug=args.debug)
    if args.json:
        print_json({"removed": removed})
    return code
