"""wirt lab ls"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import example
from wirt.cli.output import print_json, print_table


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    example(parser, "wirt lab ls", "wirt lab ls --json")


def run(args: argparse.Namespace) -> int:
    """List labs."""
    from wirt.vm.context import Context
    from wirt.vm.lab.view import list_labs

    rows = list_labs(Context())
    if args.json:
        print_json(rows)
    elif not rows:
        print("there are no labs; bring one up: wirt lab up FILE")
    else:
        print_table(
            ("LAB", "STATUS", "MACHINES", "SWITCHES", "NETWORKS", "CABLES", "FORKED FROM"),
            [
                (
                    row.name, row.status, str(row.machines), str(row.switches),
                    str(row.networks), str(row.cables), row.parent or "-",
                )
                for row in rows
            ],
        )  # fmt: skip
    return 0
