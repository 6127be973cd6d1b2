"""wirt keep"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import example
from wirt.cli.output import print_json, printable, say
from wirt.cli.progress import ProgressLine
from wirt.units import format_size
from wirt.vm.context import Context
from wirt.vm.keep import Kept, keep


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="VM[:SNAPSHOT]", help="a machine, or one of its snapshots")
    parser.add_argument(
        "--alone", action="store_true", help="nor shall it stand on the guest image it is made of"
    )
    example(parser, "wirt keep test", "wirt keep web:before-upgrade", "wirt keep --alone test")


def run(args: argparse.Namespace) -> int:
    """Write what lies in states below a machine into its disks, so that the states can go."""
    with ProgressLine("copying") as progress:
        done = keep(Context(say=say), args.name, alone=args.alone, progress=progress)
    if args.json:
        print_json(done)
    else:
        _tell(done)
    return 0


def _tell(done: Kept) -> None:
    if not done.disks:
        print(f"{done.name}: stood on no state")
    else:
        size = format_size(done.on_disk)
        verb = "stands by itself" if len(done.disks) == 1 else "stand by themselves"
        print(printable(f"{done.name}: {', '.join(done.disks)} {verb}, {size}"))
    if done.stands_on:
        print(printable(f"  over {', '.join(done.stands_on)}"))
    for ident in done.removed:
        print(f"  state {ident} is gone")
