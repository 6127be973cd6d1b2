"""wirt switch plug"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import example
from wirt.cli.output import print_json


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="SWITCH", help="name of the switch")
    parser.add_argument("--check", action="store_true", help="only say whether that is possible")
    example(parser, "ssh host2 wirt switch plug dmz   # what a cable to ssh://host2/dmz runs")


def run(args: argparse.Namespace) -> int:
    """Join standard input and output to a switch: frames as vde_plug writes them."""
    import os

    from wirt.vm.context import Context
    from wirt.vm.network.cables import switch_plug

    line = switch_plug(Context(), args.name)
    if args.json:
        print_json({"name": args.name, "program": line})
    elif args.check:
        print(f"{args.name}: can be plugged into")
    else:
        os.execv(line[0], line)  # noqa: S606 - vde_plug takes over this process and its pipes
    return 0
