"""wirt guest install"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import add_machine, example
from wirt.cli.output import print_json, printable, say
from wirt.vm.context import Context
from wirt.vm.guest_install import install_helper


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_machine(parser)
    example(parser, "wirt guest install web")


def run(args: argparse.Namespace) -> int:
    """Put wirt's helper into a guest that runs, and wait until it answers."""
    note = install_helper(Context(say=say), args.name)
    if args.json:
        print_json({"name": args.name, "helper": True, "note": note})
    else:
        print(f"{args.name}: wirt's helper answers")
        if note:
            print(printable(f"  {note}"))
    return 0
