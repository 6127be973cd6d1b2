"""wirt pause"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import add_machine, each, example
from wirt.cli.output import print_json, say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_machine(parser, many=True)
    example(parser, "wirt pause web")


def run(args: argparse.Namespace) -> int:
    """Stop the vCPUs."""
    from wirt.vm.context import Context
    from wirt.vm.stop import pause

    context = Context(say=say)

    def act(name: str) -> None:
        pause(context, name)
        if args.json:
            print_json({"name": name, "paused": True})
        else:
            print(f"{name}: paused")

    return each(args.names, act, args)
