"""wirt switch ls"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import example
from wirt.cli.output import print_json, print_table


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    example(parser, "wirt switch ls", "wirt switch ls --json")


def run(args: argparse.Namespace) -> int:
    """List switches."""
    from wirt.store.wires import names
    from wirt.vm.context import Context
    from wirt.vm.network.switches import switch_facts

    context = Context()
    found = [switch_facts(context, name) for name in names(context.home, "switch")]
    if args.json:
        print_json(found)
    elif found:
        rows = [
            (facts.name, facts.status, facts.uplink or "-", " ".join(facts.machines) or "-")
            for facts in found
        ]
        print_table(("NAME", "STATUS", "UPLINK", "MACHINES"), rows)
    else:
        print("there are no switches; make one: wirt switch create NAME")
    return 0
