"""wirt nic ls"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import add_machine, example
from wirt.cli.output import print_json, print_table


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_machine(parser)
    example(parser, "wirt nic ls web")


def run(args: argparse.Namespace) -> int:
    """List the network cards of a machine and what they are plugged into."""
    from wirt.spec.backend_text import format_backend
    from wirt.vm.context import Context
    from wirt.vm.network.cards import wire_id
    from wirt.vm.network.nics import cards_of

    wires = cards_of(Context(), args.name)
    if args.json:
        print_json([{"card": wire_id(wire), "wire": wire} for wire in wires])
        return 0
    rows = [
        (
            wire_id(wire), wire.nic.model, wire.nic.mac or "-", format_backend(wire.nic.backend),
            wire.interface or "-", "up" if wire.nic.link else "down",
        )
        for wire in wires
    ]  # fmt: skip
    print_table(("CARD", "MODEL", "MAC", "PLUGGED INTO", "TAP", "LINK"), rows)
    return 0
