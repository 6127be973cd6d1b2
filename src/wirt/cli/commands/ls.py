"""wirt ls"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import example
from wirt.cli.output import print_json, print_table
from wirt.units import format_size


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--names", action="store_true", help="only names, one on a line")
    example(parser, "wirt ls", "wirt ls --json")


def run(args: argparse.Namespace) -> int:
    """List machines."""
    from wirt.vm.context import Context
    from wirt.vm.listing import list_machines

    rows = list_machines(Context())
    if args.json:
        print_json(rows)
    elif args.names:
        for row in rows:
            print(row.name)
    elif rows:
        print_table(
            ("NAME", "STATUS", "ACCEL", "MEMORY", "VCPUS", "PORTS", "IMAGE"),
            [
                (
                    row.name,
                    row.status,
                    row.accelerator or "-",
                    format_size(row.memory),
                    str(row.vcpus),
                    _ports(row.forwards),
                    row.image or "-",
                )
                for row in rows
            ],
        )
        for row in rows:
            if row.note and row.status != "stopped":
                print(f"{row.name}: {row.note}")
    else:
        print("there are no machines; make one: wirt run debian:12 --name NAME")
    return 0


def _ports(forwards: tuple[tuple[str, int, int], ...]) -> str:
    words = [f"{host}→{guest}/{protocol}" for protocol, host, guest in forwards]
    return " ".join(words) or "-"
