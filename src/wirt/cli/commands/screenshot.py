"""wirt screenshot"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import add_machine, example
from wirt.cli.output import print_json, say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_machine(parser)
    parser.add_argument("file", metavar="FILE.png", help="where the picture goes")
    example(parser, "wirt screenshot web web.png")


def run(args: argparse.Namespace) -> int:
    """Save the guest's screen as PNG."""
    from wirt.vm.context import Context
    from wirt.vm.screen import screenshot

    screenshot(Context(say=say), args.name, args.file)
    if args.json:
        print_json({"name": args.name, "file": args.file})
    else:
        print(args.file)
    return 0
