"""wirt lab show"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import example
from wirt.cli.output import print_json, print_table, warn


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("lab", metavar="LAB", help="name of the lab")
    example(parser, "wirt lab show shop", "wirt lab show shop --json")


def run(args: argparse.Namespace) -> int:
    """Show the machines and wires of a lab as they are now."""
    from wirt.cli.commands.cable.shape import format_shape
    from wirt.vm.context import Context
    from wirt.vm.lab.view import view

    found = view(Context(), args.lab)
    if args.json:
        print_json(found)
        return 0
    print(f"{found.name}: {found.status}")
    rows = [("machine", row.name, row.status, row.image) for row in found.machines]
    rows += [("switch", one.name, one.status, " ".join(one.machines)) for one in found.switches]
    rows += [("network", one.name, one.status, one.address) for one in found.networks]
    rows += [
        ("cable", one.name, one.status, f"{one.a} ↔ {one.b} {format_shape(one.shape)}".rstrip())
        for one in found.cables
    ]
    print_table(("KIND", "NAME", "STATUS", ""), rows)
    for name in found.missing:
        warn(f"{name} is gone or damaged: wirt lab up with the same file makes it anew")
    return 0
