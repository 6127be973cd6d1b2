"""wirt snapshots"""

from __future__ import annotations

import argparse
import time

from wirt.cli.arguments import add_machine, each, example
from wirt.cli.output import print_json, print_table, printable
from wirt.units import format_size
from wirt.vm.context import Context
from wirt.vm.snapshot import Row, list_snapshots, remove_snapshot


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_machine(parser)
    parser.add_argument("--rm", metavar="NAME", nargs="+", default=[], help="remove snapshots")
    example(parser, "wirt snapshots web", "wirt snapshots web --rm before-upgrade")


def run(args: argparse.Namespace) -> int:
    """List or remove the snapshots of a machine, oldest first."""
    context = Context()
    if args.rm:
        return _remove(context, args)
    rows = list_snapshots(context, args.name)
    if args.json:
        print_json(rows)
    elif not rows:
        print(f"{args.name} has no snapshots; make one: wirt snapshot {args.name} NAME")
    else:
        print_table(("SNAPSHOT", "MADE", "MEMORY", "ON DISK", "NOTE"), [_row(row) for row in rows])
    return 0


def _row(row: Row) -> tuple[str, ...]:
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.created))
    size = format_size(row.on_disk)
    return row.name, moment, "yes" if row.memory else "no", size, row.note


def _remove(context: Context, args: argparse.Namespace) -> int:
    def act(name: str) -> None:
        users = remove_snapshot(context, args.name, name)
        if args.json:
            said = {"machine": args.name, "name": name, "removed": True, "needed_by": users}
            print_json(said)
            return
        print(f"{name}: removed")
        if users:
            print(printable(f"  its files stay, for {', '.join(users)}: see wirt keep"))

    return each(args.rm, act, args)
