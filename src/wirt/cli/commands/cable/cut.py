"""wirt cable cut"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import each_told, example
from wirt.cli.output import say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("names", metavar="CABLE", nargs="+", help="name of a cable")
    example(parser, "wirt cable cut dmz-lan")


def run(args: argparse.Namespace) -> int:
    """Cut cables until they are mended."""
    from wirt.vm.context import Context
    from wirt.vm.network.cables import cut_cable

    context = Context(say=say)
    return each_told(args, "cut", lambda name: cut_cable(context, name))
