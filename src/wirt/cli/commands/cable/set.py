"""wirt cable set"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import example
from wirt.cli.output import print_json, say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    from wirt.cli.commands.cable.shape import add_shape

    parser.add_argument("name", metavar="CABLE", help="name of the cable")
    add_shape(parser)
    example(
        parser, "wirt cable set dmz-lan --delay 50ms --loss 10", "wirt cable set dmz-lan --loss 0"
    )


def run(args: argparse.Namespace) -> int:
    """Change what a cable does to frames, while they pass."""
    from wirt.cli.commands.cable.shape import format_shape, shape_of
    from wirt.vm.context import Context
    from wirt.vm.network.cables import cable_facts, shape_cable

    context = Context(say=say)
    shape = shape_of(args, cable_facts(context, args.name).shape)
    shape_cable(context, args.name, shape)
    if args.json:
        print_json(cable_facts(context, args.name))
    else:
        print(f"{args.name}: {format_shape(shape)}")
    return 0
