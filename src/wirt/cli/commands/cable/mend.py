"""wirt cable mend"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import each_told, example
from wirt.cli.output import say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("names", metavar="CABLE", nargs="+", help="name of a cable")
    example(parser, "wirt cable mend dmz-lan")


def run(args: argparse.Namespace) -> int:
    """Put cables that were cut together again."""
    from wirt.vm.context import Context
    from wirt.vm.network.cables import mend_cable

    context = Context(say=say)
    return each_told(args, "mended", lambda name: mend_cable(context, name))
