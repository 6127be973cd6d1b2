"""wirt nic rm"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import add_machine, example
from wirt.cli.output import print_json, say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_machine(parser)
    parser.add_argument("card", metavar="CARD", help="name of the card: nic0")
    example(parser, "wirt nic rm web nic1")


def run(args: argparse.Namespace) -> int:
    """Take a network card out, also while the machine runs."""
    from wirt.vm.context import Context
    from wirt.vm.network.nics import remove_nic

    remove_nic(Context(say=say), args.name, args.card)
    if args.json:
        print_json({"name": args.name, "removed": args.card})
    else:
        print(f"{args.name}: {args.card} removed")
    return 0
