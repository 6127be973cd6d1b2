"""wirt cable rm"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import each_told, example
from wirt.cli.output import say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("names", metavar="CABLE", nargs="+", help="name of a cable")
    example(parser, "wirt cable rm dmz-lan")


def run(args: argparse.Namespace) -> int:
    """Remove cables."""
    from wirt.vm.context import Context
    from wirt.vm.network.cables import remove_cable

    context = Context(say=say)
    return each_told(args, "removed", lambda name: remove_cable(context, name))
