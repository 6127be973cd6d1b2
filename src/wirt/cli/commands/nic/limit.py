"""wirt nic limit"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import add_machine, example
from wirt.cli.output import print_json, say
from wirt.units import parse_size


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_machine(parser)
    parser.add_argument("card", metavar="CARD", help="name of the card: nic0")
    parser.add_argument("--in", dest="to_guest", default="0", metavar="SIZE", help="bytes a second")
    parser.add_argument("--out", dest="from_guest", default="0", metavar="SIZE", help="likewise")
    example(parser, "wirt nic limit web nic0 --in 2M --out 500K", "wirt nic limit web nic0")


def run(args: argparse.Namespace) -> int:
    """Limit what a card on a tap or a network moves; without numbers, lift the limits."""
    from wirt.spec.nic import Rate
    from wirt.vm.context import Context
    from wirt.vm.network.nics import limit

    rate = Rate(parse_size(args.to_guest), parse_size(args.from_guest))
    limit(Context(say=say), args.name, args.card, rate)
    if args.json:
        print_json({"name": args.name, "card": args.card, "rate": rate})
    else:
        shown = f"in {args.to_guest}, out {args.from_guest} bytes a second (0: no limit)"
        print(f"{args.name}: {args.card}: {shown}")
    return 0
