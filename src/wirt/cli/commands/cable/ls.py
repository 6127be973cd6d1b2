"""wirt cable ls"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import example
from wirt.cli.output import print_json, print_table


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    example(parser, "wirt cable ls", "wirt cable ls --json")


def run(args: argparse.Namespace) -> int:
    """List cables."""
    from wirt.cli.commands.cable.shape import format_shape
    from wirt.store.wires import names
    from wirt.vm.context import Context
    from wirt.vm.network.cables import cable_facts

    context = Context()
    found = [cable_facts(context, name) for name in names(context.home, "cable")]
    if args.json:
        print_json(found)
    elif found:
        rows = [
            (one.name, one.a, one.b, one.status, format_shape(one.shape), one.why or "-")
            for one in found
        ]
        print_table(("NAME", "A", "B", "STATUS", "SHAPE", "WHY"), rows)
    else:
        print("there are no cables; lay one: wirt cable create SWITCH SWITCH")
    return 0
