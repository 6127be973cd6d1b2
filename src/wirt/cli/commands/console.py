"""wirt console"""

from __future__ import annotations

import argparse
import sys

from wirt.cli.arguments import add_machine, example
from wirt.cli.output import say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_machine(parser)
    parser.add_argument("--port", default="serial0", help="which serial port (serial0)")
    example(parser, "wirt console web        # Ctrl-] leaves")


def run(args: argparse.Namespace) -> int:
    """Join this terminal and a serial console; several may look at once."""
    from wirt.vm.console import attach
    from wirt.vm.context import Context

    say(f"console of {args.name}: Ctrl-] leaves, Enter shows a prompt")
    why = attach(
        Context(say=say), args.name, console=args.port,
        stdin=sys.stdin.fileno(), stdout=sys.stdout.fileno(),
    )  # fmt: skip
    say(why)
    return 0
