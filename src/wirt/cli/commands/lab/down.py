"""wirt lab down"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import each_told, example
from wirt.cli.output import say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("names", metavar="LAB", nargs="+", help="name of a lab")
    example(parser, "wirt lab down shop")


def run(args: argparse.Namespace) -> int:
    """Remove labs: their machines with their disks, and their wires."""
    from wirt.vm.context import Context
    from wirt.vm.lab.down import bring_down

    context = Context(say=say)
    return each_told(args, "removed", lambda name: bring_down(context, name))
