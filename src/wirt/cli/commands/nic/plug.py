"""wirt nic plug"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import add_machine, example
from wirt.cli.output import print_json, say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_machine(parser)
    parser.add_argument("card", metavar="CARD", help="name of the card: nic0")
    parser.add_argument(
        "backend", metavar="BACKEND", nargs="?", default="",
        help="user, network=NAME, switch=NAME …; left out: where it is, once more",
    )  # fmt: skip
    example(
        parser,
        "wirt nic plug web nic0 switch=dmz",
        "wirt nic plug web nic0 none",
        "wirt nic plug web nic0   # its peer was restarted",
    )


def run(args: argparse.Namespace) -> int:
    """Plug a card into another network, also while the machine runs."""
    from wirt.spec.backend_text import parse_backend
    from wirt.vm.context import Context
    from wirt.vm.network.nics import plug, replug

    context = Context(say=say)
    if args.backend:
        plug(context, args.name, args.card, parse_backend(args.backend))
    else:
        replug(context, args.name, args.card)
    if args.json:
        print_json({"name": args.name, "card": args.card, "backend": args.backend or None})
    else:
        print(f"{args.name}: {args.card} plugged into {args.backend or 'the same again'}")
    return 0
