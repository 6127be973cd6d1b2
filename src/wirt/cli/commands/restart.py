"""wirt restart"""

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
    example(parser, "wirt restart web")


def run(args: argparse.Namespace) -> int:
    """Stop and start machines: a new QEMU, so that changed settings take effect."""
    from wirt.units import parse_duration
    from wirt.vm.context import Context
    from wirt.vm.start import start
    from wirt.vm.stop import stop

    context = Context(say=say)
    timeout = parse_duration(args.timeout)

    def act(name: str) -> None:
        stop(context, name, timeout=timeout, force=args.force)
        start(context, name)
        if args.json:
            print_json({"name": name, "restarted": True})
        else:
            print(f"{name}: restarted")

    return each(args.names, act, args)
