"""wirt net start"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import each, example
from wirt.cli.output import print_json, say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("names", metavar="NETWORK", nargs="+", help="name of a network")
    example(parser, "wirt net start office")


def run(args: argparse.Namespace) -> int:
    """Start what of a network does not live; the start of a machine on it does that too."""
    from wirt.vm.context import Context
    from wirt.vm.network.bridges import ensure_bridge

    context = Context(say=say)
    up: list[str] = []

    def act(name: str) -> None:
        ensure_bridge(context, name)
        up.append(name)
        if not args.json:
            print(f"{name}: up")

    code = each(args.names, act, args)
    if args.json:
        print_json({"up": up})
    return code
