"""wirt switch rm"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import each_told, example
from wirt.cli.output import say


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
    return each_told(args, "removed", lambda name: remove_switch(context, name, force=args.force))
