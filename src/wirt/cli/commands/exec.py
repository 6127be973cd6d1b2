"""wirt exec"""

from __future__ import annotations

import argparse
import os
import sys

from wirt.cli.arguments import add_machine, example
from wirt.cli.output import say
from wirt.cli.terminal import run_in_guest, stdin_or_none, writer
from wirt.units import parse_duration
from wirt.vm.context import Context
from wirt.vm.execute import Order


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("-e", "--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("-w", "--workdir", default="", metavar="DIR", help="directory in the guest")
    parser.add_argument("-u", "--user", default="", help="user in the guest (root)")
    parser.add_argument("-t", "--tty", action="store_true", help="with a terminal")
    parser.add_argument("-n", "--no-stdin", action="store_true", help="do not read standard input")
    parser.add_argument("--timeout", metavar="TIME", help="kill the command after this")
    add_machine(parser)
    parser.add_argument("command", metavar="-- COMMAND", nargs="*", default=[], help="what to run")
    example(
        parser,
        "wirt exec web -- uname -a",
        "wirt exec -t web -- bash",
        "wirt exec -e LANG=C -w /srv web -- make test < input",
    )


def run(args: argparse.Namespace) -> int:
    """Run a command in a guest; its streams and exit code are this command's."""
    order = Order(
        argv=args.command,
        env=dict(_pair(text) for text in args.env),
        cwd=args.workdir,
        user=args.user,
        stdin=None if args.no_stdin else stdin_or_none(),
        stdout=writer(sys.stdout.fileno()),
        stderr=writer(sys.stderr.fileno()),
        timeout=parse_duration(args.timeout) if args.timeout else None,
    )
    return run_in_guest(Context(say=say), args.name, order, terminal=args.tty)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    return (name, value) if equals else (name, os.environ.get(name, ""))
