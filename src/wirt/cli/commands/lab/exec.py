"""wirt lab exec"""

from __future__ import annotations

import argparse
import sys

from wirt.cli.arguments import example
from wirt.cli.output import say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("-t", "--tty", action="store_true", help="with a terminal")
    parser.add_argument("-n", "--no-stdin", action="store_true", help="do not read standard input")
    parser.add_argument("lab", metavar="LAB", help="name of the lab")
    parser.add_argument("machine", metavar="MACHINE", help="its name inside the lab")
    parser.add_argument("command", metavar="-- COMMAND", nargs="*", default=[], help="what to run")
    example(parser, "wirt lab exec shop web -- ip addr", "wirt lab exec -t shop db -- bash")


def run(args: argparse.Namespace) -> int:
    """Run a command in a guest of a lab; its streams and exit code are this command's."""
    from wirt.cli.terminal import run_in_guest, stdin_or_none, writer
    from wirt.vm.context import Context
    from wirt.vm.execute import Order
    from wirt.vm.lab.view import machine_of

    context = Context(say=say)
    order = Order(
        argv=args.command,
        stdin=None if args.no_stdin else stdin_or_none(),
        stdout=writer(sys.stdout.fileno()),
        stderr=writer(sys.stderr.fileno()),
    )
    name = machine_of(context, args.lab, args.machine)
    return run_in_guest(context, name, order, terminal=args.tty)
