"""wirt undo"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import add_machine, example
from wirt.cli.commands.restore import tell
from wirt.cli.output import print_json, say
from wirt.vm.context import Context
from wirt.vm.restore import undo


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_machine(parser)
    parser.add_argument(
        "--discard", action="store_true",
        help="do not keep what VM is now as the snapshot `replaced`",
    )  # fmt: skip
    example(parser, "wirt undo web")


def run(args: argparse.Namespace) -> int:
    """Bring a machine back to its newest snapshot."""
    done = undo(Context(say=say), args.name, discard=args.discard)
    if args.json:
        print_json(done)
    else:
        tell(done)
    return 0
