"""wirt net exec"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import example
from wirt.cli.output import print_json, say
from wirt.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="NETWORK", help="name of the network")
    example(parser, "wirt net exec office -- ping 10.64.0.10", "wirt net exec office -- bash")


def run(args: argparse.Namespace) -> int:
    """Run a command on the host's side of a network: inside its namespace if it is private."""
    import os

    from wirt.host.process import find_program
    from wirt.vm.context import Context
    from wirt.vm.network.bridges import ensure_bridge, place_of

    if not args.command:
        raise UsageError("there is no command", hint=f"wirt net exec {args.name} -- ip address")
    record = ensure_bridge(Context(say=say), args.name)
    program = find_program(args.command[0])
    line = place_of(record).command([program, *args.command[1:]])
    if args.json:
        print_json({"program": line})
    else:
        os.execv(line[0], line)  # noqa: S606 - the command takes over this process
    return 0
