"""wirt lab fork"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import example
from wirt.cli.output import print_json, say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("lab", metavar="LAB", help="name of a lab that runs")
    parser.add_argument("new", metavar="NEW", nargs="?", default="", help="name (LAB-fork)")
    example(parser, "wirt lab fork shop", "wirt lab fork shop trial")


def run(args: argparse.Namespace) -> int:
    """Fork a lab; say how long it stood still."""
    from wirt.vm.context import Context
    from wirt.vm.lab.fork import fork_lab

    result = fork_lab(Context(say=say), args.lab, args.new or f"{args.lab}-fork")
    if args.json:
        print_json(result)
        return 0
    print(
        f"{result.source}: stood still for {result.pause * 1000:.0f} ms, "
        f"all within {result.skew * 1000:.0f} ms"
    )
    print(f"{result.name}: up, {len(result.machines)} machines")
    for note in result.notes:
        print(f"  {note}")
    return 0
