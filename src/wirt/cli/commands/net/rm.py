"""wirt net rm"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import each_told, example
from wirt.cli.output import say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("names", metavar="NETWORK", nargs="+", help="name of a network")
    parser.add_argument("-f", "--force", action="store_true", help="also one that is used")
    example(parser, "wirt net rm office")


def run(args: argparse.Namespace) -> int:
    """Remove networks with their bridges, servers and namespaces."""
    from wirt.vm.context import Context
    from wirt.vm.network.bridges import remove_bridge

    context = Context(say=say)
    return each_told(args, "removed", lambda name: remove_bridge(context, name, force=args.force))
