"""wirt wait"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import add_machine, example
from wirt.cli.output import print_json, say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_machine(parser)
    parser.add_argument(
        "--for", dest="what", choices=["guest", "stopped"], default="guest", help="what to wait for"
    )
    parser.add_argument("--timeout", default="5m", metavar="TIME", help="give up after (5m)")
    example(parser, "wirt wait web", "wirt wait --for stopped --timeout 1h web")


def run(args: argparse.Namespace) -> int:
    """Wait until the guest answers, or the machine is down."""
    from wirt.units import parse_duration
    from wirt.vm.context import Context
    from wirt.vm.wait import wait_for_guest, wait_for_stop

    context = Context(say=say)
    timeout = parse_duration(args.timeout)
    answer = ""
    if args.what == "guest":
        answer = wait_for_guest(context, args.name, timeout=timeout)
    else:
        wait_for_stop(context, args.name, timeout=timeout)
    if args.json:
        print_json({"name": args.name, "answered_by": answer})
    else:
        print(f"{args.name}: answers ({answer})" if answer else f"{args.name}: stopped")
    return 0
