"""wirt net show"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import example
from wirt.cli.output import print_json, print_table, say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="NETWORK", help="name of the network")
    example(parser, "wirt net show office")


def run(args: argparse.Namespace) -> int:
    """Show one network and the addresses that its guests were given."""
    from wirt.vm.context import Context
    from wirt.vm.network.bridges import bridge_facts

    facts = bridge_facts(Context(say=say), args.name)
    if args.json:
        print_json(facts)
        return 0
    where = "private" if facts.private else "on this host"
    print(f"{facts.name}: {facts.status}, {where}, bridge {facts.interface} {facts.address}")
    print(f"  machines: {' '.join(facts.machines) or '-'}")
    if facts.leases:
        print_table(
            ("NAME", "ADDRESS", "MAC"),
            [(lease.name, lease.address, lease.mac) for lease in facts.leases],
        )
    return 0
