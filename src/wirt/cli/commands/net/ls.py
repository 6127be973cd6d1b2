"""wirt net ls"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import example
from wirt.cli.output import print_json, print_table


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    example(parser, "wirt net ls", "wirt net ls --json   # switches, cables and cards too")


def run(args: argparse.Namespace) -> int:
    """List bridge networks; with --json everything that ``wirt net map`` draws."""
    from wirt.vm.context import Context
    from wirt.vm.network.survey import survey

    found = survey(Context())
    if args.json:
        print_json(found)
    elif found.bridges:
        rows = [
            (
                one.name, one.status, "private" if one.private else "host", one.interface,
                one.address, " ".join(one.machines) or "-",
            )
            for one in found.bridges
        ]  # fmt: skip
        print_table(("NAME", "STATUS", "WHERE", "BRIDGE", "ADDRESS", "MACHINES"), rows)
    else:
        print("there are no networks; make one: wirt net create NAME --private")
    return 0
