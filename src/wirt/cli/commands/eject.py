"""wirt eject"""

from __future__ import annotations

import argparse

from msgspec.structs import asdict

from wirt.cli.arguments import add_machine, example
from wirt.cli.commands.insert import add_drive
from wirt.cli.output import print_json, say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_machine(parser)
    add_drive(parser)
    example(parser, "wirt eject web", "wirt eject old --drive fd")


def run(args: argparse.Namespace) -> int:
    """Empty a CD or floppy drive, also while the machine runs."""
    from wirt.vm.context import Context
    from wirt.vm.medium import eject

    done = eject(Context(say=say), args.name, drive=args.drive, force=args.force)
    if args.json:
        print_json({"name": args.name, **asdict(done)})
    else:
        what = f"{done.before} is out" if done.before else "was empty"
        print(f"{args.name}: {done.drive}: {what}")
    return 0
