"""wirt cable cut"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import each, example
from wirt.cli.output import print_json, say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("names", metavar="CABLE", nargs="+", help="name of a cable")
    example(parser, "wirt cable cut dmz-lan")


def run(args: argparse.Namespace) -> int:
    """Cut cables until they are mended."""
    from wirt.vm.context import Context
    from wirt.vm.network.cables import cut_cable

    context = Context(say=say)
    done: list[str] = []

    def act(name: str) -> None:
        cut_cable(context, name)
        done.append(name)
        if not args.json:
            print(f"{name}: cut")

    code = each(args.names, act, debug=args.debug)
    if args.json:
        print_json({"cut": done})
    return code
