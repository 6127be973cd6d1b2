"""wirt stop"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import add_machine, each, example
from wirt.cli.output import print_json, say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_machine(parser, many=True)
    parser.add_argument(
        "--timeout", default="90s", metavar="TIME", help="for the guest to power off (90s)"
    )
    parser.add_argument("--force", action="store_true", help="pull the plug at once")
    example(parser, "wirt stop web", "wirt stop --timeout 10s web db")


def run(args: argparse.Namespace) -> int:
    """Stop machines and say how they went down."""
    from wirt.store.record import read_record
    from wirt.units import parse_duration
    from wirt.vm.context import Context
    from wirt.vm.stop import stop

    context = Context(say=say)
    timeout = parse_duration(args.timeout)

    def act(name: str) -> None:
        stopped = stop(context, name, timeout=timeout, force=args.force)
        how = read_record(context.home.vm(name).record).ended
        if args.json:
            print_json({"name": name, "stopped": stopped, "how": how})
        else:
            print(f"{name}: {how}" if stopped else f"{name}: was stopped already")

    return each(args.names, act, args)
