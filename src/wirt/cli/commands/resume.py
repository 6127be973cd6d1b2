"""wirt resume"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import add_machine, each, example
from wirt.cli.output import print_json, say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_machine(parser, many=True)
    example(parser, "wirt resume web")


def run(args: argparse.Namespace) -> int:
    """Let the vCPUs run again."""
    from wirt.vm.context import Context
    from wirt.vm.stop import resume

    context = Context(say=say)

    def act(name: str) -> None:
        resume(context, name)
        if args.json:
            print_json({"name": name, "resumed": True})
        else:
            print(f"{name}: resumed")

    return each(args.names, act, args)
