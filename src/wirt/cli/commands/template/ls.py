"""wirt template ls"""

from __future__ import annotations

import argparse
import time

from wirt.cli.arguments import example
from wirt.cli.output import print_json, print_table
from wirt.units import format_size
from wirt.vm.context import Context
from wirt.vm.template import Row, list_templates


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    example(parser, "wirt template ls", "wirt template ls --json")


def run(args: argparse.Namespace) -> int:
    """List warm images, the most recently used first."""
    rows = list_templates(Context())
    if args.json:
        print_json(rows)
    elif not rows:
        print("there are no templates; the first `wirt run IMAGE -- COMMAND` makes one")
    else:
        print_table(
            ("TEMPLATE", "IMAGE", "MEMORY", "VCPUS", "ON DISK", "USED", "NOTE"),
            [_row(row) for row in rows],
        )
    return 0


def _row(row: Row) -> tuple[str, ...]:
    moment = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.used))
    note = "" if row.fits else "no longer fits: the next run makes another"
    size = format_size(row.on_disk)
    return row.fingerprint, row.image, format_size(row.memory), str(row.vcpus), size, moment, note
