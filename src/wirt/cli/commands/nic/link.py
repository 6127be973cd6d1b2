"""wirt nic link"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import add_machine, example
from wirt.cli.output import print_json, say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_machine(parser)
    parser.add_argument("card", metavar="CARD", help="name of the card: nic0")
    parser.add_argument("state", choices=["up", "down"])
    example(parser, "wirt nic link web nic0 down")


def run(args: argparse.Namespace) -> int:
    """Pull the cable out of a card or put it in, as the guest sees it."""
    from wirt.vm.context import Context
    from wirt.vm.network.nics import set_link

    set_link(Context(say=say), args.name, args.card, up=args.state == "up")
    if args.json:
        print_json({"name": args.name, "card": args.card, "link": args.state})
    else:
        print(f"{args.name}: {args.card} is {args.state}")
    return 0
