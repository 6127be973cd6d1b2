"""wirt snapshot"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import add_machine, example
from wirt.cli.output import print_json, printable, say
from wirt.units import format_size


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_machine(parser)
    parser.add_argument("snapshot", metavar="NAME", help="name of the snapshot")
    example(parser, "wirt snapshot web before-upgrade")


def run(args: argparse.Namespace) -> int:
    """Keep a machine as it is now; say how long it stood still and what it takes."""
    from wirt.vm.context import Context
    from wirt.vm.snapshot import snapshot

    taken = snapshot(Context(say=say), args.name, args.snapshot)
    if args.json:
        print_json(taken)
        return 0
    size = format_size(taken.on_disk)
    if taken.memory:
        print(
            f"{taken.name}: kept, {size} on disk; {taken.machine} stood still for "
            f"{taken.pause * 1000:.0f} ms ({taken.method})"
        )
    else:
        print(f"{taken.name}: kept, {size} on disk, without memory: {taken.machine} is down")
    for note in taken.notes:
        print(printable(f"  {note}"))
    return 0
